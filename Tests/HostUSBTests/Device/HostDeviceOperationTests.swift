// SPDX-License-Identifier: Apache-2.0

import TestKit
import Testing
import USB

@testable import HostUSB

/// Operations on a device, and the transfers that wait for them.
extension HostDeviceTests {
    // MARK: - Streams

    @Test func `a stream's transfers are submitted`() {
        device.submit(
            Transfer(
                id: .init(rawValue: 1), endpoint: Self.bulkIn, kind: .bulk(stream: 7),
                buffer: Bytes([0]).buffer))
        #expect(handle.inFlightIDs == [1])
    }

    @Test func `an endpoint's transfers wait until its streams are allocated`() {
        device.setStreams(16, for: Self.bulkIn)
        #expect(handle.operations == [.allocateStreams(Self.bulkIn, count: 16)])
        bulk(1, Self.bulkIn)
        bulk(2, Self.bulkOut)
        #expect(handle.inFlightIDs == [2])
        handle.endOperation(.done)
        #expect(handle.inFlightIDs == [2, 1])
        device.setStreams(0, for: Self.bulkIn)
        #expect(handle.operations.last == .freeStreams(Self.bulkIn))
        handle.endOperation(.done)
        #expect(port.take() == [])
    }

    @Test func `streams of several endpoints change one after the other`() {
        device.setStreams(16, for: Self.bulkIn)
        device.setStreams(16, for: Self.bulkOut)
        device.setStreams(8, for: Self.bulkOut)
        bulk(1, Self.bulkOut)
        handle.endOperation(.refused, warnings: ["none"])
        #expect(
            handle.operations == [
                .allocateStreams(Self.bulkIn, count: 16), .allocateStreams(Self.bulkOut, count: 8),
            ])
        #expect(handle.inFlightIDs == [])
        handle.endOperation(.done)
        #expect(handle.inFlightIDs == [1])
        #expect(log.all == ["warning: host 1:4: none"])
    }

    @Test func `a control request waits until streams have changed`() {
        device.setStreams(16, for: Self.bulkIn)
        control(1, .setInterface(0, 1))
        #expect(handle.operations == [.allocateStreams(Self.bulkIn, count: 16)])
        handle.endOperation(.done)
        #expect(port.take() == [])
        #expect(handle.operations.last == .setInterface(0, setting: 1))
        handle.endOperation(.done)
        #expect(port.take() == ["1 completed 0"])
    }

    @Test func `streams change when the operation before them is dropped`() {
        bulk(1, Self.bulkIn)
        device.cancel(.init(rawValue: 1))
        control(2, .clearHalt(0x81))
        device.setStreams(16, for: Self.bulkOut)
        #expect(handle.operations == [])
        device.cancel(.init(rawValue: 2))
        #expect(handle.operations == [.allocateStreams(Self.bulkOut, count: 16)])
    }

    @Test func `descriptors offer the streams that the host has`() throws {
        device.descriptorFilter.streamLimit = StreamLimit(granted: 7, of: 16)
        let whole = StreamLimitTests.disk()
        let offered = StreamLimitTests.disk(exponent: 2)
        func answer(_ id: UInt64, _ setup: SetupPacket) -> [UInt8] {
            let bytes = Bytes(whole)
            device.submit(
                Transfer(
                    id: .init(rawValue: id), endpoint: .control, kind: .control(setup),
                    buffer: bytes.buffer))
            handle.end(id, transferred: whole.count)
            return bytes.content
        }
        func get(_ type: UInt8, _ value: UInt16) -> SetupPacket {
            SetupPacket(requestType: type, request: 6, value: value, index: 0, length: 255)
        }
        #expect(answer(1, get(0x80, 0x200)) == offered)
        #expect(answer(2, get(0x80, 0x201)) == offered)
        // The same bytes in another descriptor or from another recipient are not changed.
        #expect(answer(3, get(0x80, 0x300)) == whole)
        #expect(answer(4, get(0xc0, 0x200)) == whole)
        #expect(answer(5, get(0x81, 0x200)) == whole)
        device.descriptorFilter.streamLimit = nil
        #expect(answer(6, get(0x80, 0x200)) == whole)
    }

    /// Drivers read the first bytes of a configuration before the whole.
    @Test(arguments: [(2, 7), (2, 8), (2, 9), (2, 18), (7, 9)] as [(UInt8, Int)])
    func `a guest is not offered remote wakeup`(type: UInt8, count: Int) {
        let whole: [UInt8] = [9, type, 18, 0, 1, 1, 0, 0xe0, 50, 9, 4, 0, 0, 0, 0xe0, 1, 1, 0x20]
        let part = Array(whole.prefix(count))
        let bytes = Bytes(part)
        let setup = SetupPacket(
            requestType: 0x80, request: 6, value: UInt16(type) << 8, index: 0,
            length: UInt16(count))
        device.submit(
            Transfer(
                id: .init(rawValue: 1), endpoint: .control, kind: .control(setup),
                buffer: bytes.buffer))
        handle.end(1, transferred: count)
        var expected = part
        if count > 7 { expected[7] = 0xc0 }
        #expect(bytes.content == expected)
    }

    // MARK: - Operations

    @Test func `a configuration is set by the kernel while all transfers wait`() {
        control(1, .setConfiguration(1))
        #expect(handle.operations == [.setConfiguration(1)])
        control(2, .getDeviceDescriptor)
        bulk(3, Self.bulkIn)
        bulk(4, Self.bulkIn)
        #expect(handle.inFlightIDs == [])
        #expect(port.take() == [])
        handle.endOperation(.done)
        #expect(port.take() == ["1 completed 0"])
        #expect(handle.inFlightIDs == [2, 3, 4])
    }

    @Test func `an interface's setting is set by the kernel`() {
        control(1, .setInterface(2, 3))
        #expect(handle.operations == [.setInterface(2, setting: 3)])
        handle.endOperation(.refused)
        #expect(port.take() == ["1 stalled 0"])
    }

    /// The kernel locks the device while it clears a halt: a submission would block the loop.
    @Test func `while a halt is cleared all transfers wait`() {
        control(1, .clearHalt(0x81))
        #expect(handle.operations == [.clearHalt(Self.bulkIn)])
        bulk(2, Self.bulkIn)
        bulk(3, Self.bulkOut)
        control(4, .getDeviceDescriptor)
        #expect(handle.inFlightIDs == [])
        handle.endOperation(.done)
        #expect(port.take() == ["1 completed 0"])
        #expect(handle.inFlightIDs == [4, 3, 2])
    }

    @Test func `a halt is not cleared before the endpoint's cancelled transfers have ended`() {
        bulk(1, Self.bulkIn)
        bulk(2, Self.bulkIn)
        bulk(3, Self.bulkOut)
        handle.end(1, .stalled)
        control(4, .clearHalt(0x81))
        #expect(handle.operations == [])
        handle.end(2, .cancelled)
        #expect(handle.operations == [.clearHalt(Self.bulkIn)])
    }

    @Test func `clearing a halt does not wait for a transfer that is not cancelled`() {
        bulk(1, Self.bulkIn)
        control(2, .clearHalt(0x81))
        #expect(handle.operations == [.clearHalt(Self.bulkIn)])
    }

    @Test func `a configuration is not set before the transfers it cancels have ended`() {
        bulk(1, Self.bulkIn)
        bulk(2, Self.bulkIn)
        bulk(3, Self.interruptIn)
        control(4, .setConfiguration(1))
        #expect(handle.cancelled == [2, 1, 3])
        #expect(handle.operations == [])
        handle.end(1, .completed, transferred: 512)
        handle.end(2, .cancelled)
        #expect(handle.operations == [])
        handle.end(3, .cancelled)
        #expect(handle.operations == [.setConfiguration(1)])
        #expect(port.take() == ["1 completed 512", "2 cancelled 0", "3 cancelled 0"])
        #expect(port.disconnections == 0)
    }

    @Test func `an alternate setting cancels the transfers of its interface and no others`() {
        device.endpoints = InterfaceEndpoints(in: [
            9, 2, 0, 0, 2, 1, 0, 0x80, 0,
            9, 4, 0, 0, 1, 3, 0, 0, 0, 7, 5, 0x82, 3, 8, 0, 8,
            9, 4, 1, 0, 0, 8, 0, 0, 0,
            9, 4, 1, 1, 1, 8, 0, 0, 0, 7, 5, 0x81, 2, 0, 2, 0,
        ])
        bulk(1, Self.bulkIn)
        bulk(2, Self.interruptIn)
        handle.results = [.noMemory]
        bulk(3, Self.bulkIn)
        control(4, .setInterface(1, 0))
        #expect(handle.cancelled == [1])
        #expect(handle.operations == [])
        handle.end(1, .cancelled)
        #expect(port.take() == ["1 cancelled 0", "3 cancelled 0"])
        #expect(handle.operations == [.setInterface(1, setting: 0)])
        handle.endOperation(.done)
        #expect(port.take() == ["4 completed 0"])
        #expect(handle.inFlightIDs == [2])
    }

    @Test func `a second operation follows the first`() {
        control(1, .setConfiguration(1))
        control(2, .setInterface(0, 1))
        control(3, .getDeviceDescriptor)
        #expect(handle.operations == [.setConfiguration(1)])
        handle.endOperation(.done)
        #expect(handle.operations == [.setConfiguration(1), .setInterface(0, setting: 1)])
        #expect(handle.inFlightIDs == [])
        handle.endOperation(.done)
        #expect(handle.inFlightIDs == [3])
        #expect(port.take() == ["1 completed 0", "2 completed 0"])
    }

    @Test func `warnings of an operation are logged and the guest goes on`() {
        control(1, .setConfiguration(1))
        handle.endOperation(.done, warnings: ["interface 1 cannot be claimed: busy"])
        #expect(port.take() == ["1 completed 0"])
        #expect(log.all == ["warning: host 1:4: interface 1 cannot be claimed: busy"])
    }

    @Test func `a guest cannot fill the log with warnings`() {
        func warn(_ id: UInt64, _ text: String) {
            control(id, .setInterface(0, 1))
            handle.endOperation(.refused, warnings: [text])
        }
        warn(1, "none")
        warn(2, "none")
        #expect(log.all == ["warning: host 1:4: none"])
        for id in 3..<100 as Range<UInt64> { warn(id, "setting \(id)") }
        #expect(log.all.count == HostUSBLimits.warningsLogged)
    }

    @Test func `the address is never set on the device`() {
        control(1, .setAddress(5))
        #expect(port.take() == ["1 completed 0"])
        #expect(handle.inFlightIDs == [])
        #expect(handle.operations == [])
    }

    @Test func `a cancelled request ends at once and later transfers wait for its operation`() {
        control(1, .setConfiguration(1))
        control(2, .getDeviceDescriptor)
        device.cancel(.init(rawValue: 1))
        #expect(port.take() == ["1 cancelled 0"])
        #expect(handle.inFlightIDs == [])
        handle.endOperation(.done)
        #expect(port.take() == [])
        #expect(handle.inFlightIDs == [2])
    }

    @Test func `a cancelled request whose operation has not started is dropped`() {
        bulk(1, Self.bulkIn)
        device.cancel(.init(rawValue: 1))
        control(2, .clearHalt(0x81))
        bulk(3, Self.bulkIn)
        #expect(handle.operations == [])
        device.cancel(.init(rawValue: 2))
        #expect(port.take() == ["2 cancelled 0"])
        #expect(handle.inFlightIDs == [1, 3])
        handle.end(1, .cancelled)
        #expect(handle.operations == [])
    }

    @Test func `a waiting transfer that is cancelled ends at once`() {
        control(1, .setConfiguration(1))
        bulk(2, Self.bulkIn)
        bulk(3, Self.bulkIn)
        device.cancel(.init(rawValue: 2))
        #expect(port.take() == ["2 cancelled 0"])
        handle.endOperation(.done)
        #expect(handle.inFlightIDs == [3])
    }

    // MARK: - Reset

    @Test func `a reset cancels the transfers in flight, then resets, then starts later transfers`()
    {
        bulk(1, Self.bulkIn)
        device.reset()
        #expect(handle.cancelled == [1])
        control(2, .getDeviceDescriptor)
        #expect(handle.operations == [])
        handle.end(1, .cancelled)
        #expect(port.take() == ["1 cancelled 0"])
        #expect(handle.operations == [.reset])
        #expect(handle.inFlightIDs == [])
        handle.endOperation(.done)
        #expect(handle.inFlightIDs == [2])
    }

    @Test func `a reset cancels waiting transfers`() {
        control(1, .setConfiguration(1))
        bulk(2, Self.bulkIn)
        device.reset()
        #expect(port.take() == ["1 cancelled 0", "2 cancelled 0"])
        #expect(handle.operations == [.setConfiguration(1)])
        control(3, .getDeviceDescriptor)
        handle.endOperation(.done)
        #expect(handle.operations == [.setConfiguration(1), .reset])
        #expect(handle.inFlightIDs == [])
        handle.endOperation(.done)
        #expect(handle.inFlightIDs == [3])
        #expect(port.take() == [])
    }

    @Test func `a second reset is skipped if the device was only read`() {
        device.reset()
        handle.endOperation(.done)
        control(1, .getDeviceDescriptor)
        handle.end(1, transferred: 18)
        device.reset()
        #expect(handle.operations == [.reset])
        control(2, .setAddress(1))
        device.reset()
        #expect(handle.operations == [.reset])
    }

    @Test(arguments: [
        SetupPacket.setConfiguration(1),
        SetupPacket(requestType: 0x21, request: 0xff, value: 0, index: 0, length: 0),
        SetupPacket(requestType: 0xc0, request: 1, value: 0, index: 0, length: 4),
    ])
    func `a modified device is reset again`(setup: SetupPacket) {
        device.reset()
        handle.endOperation(.done)
        control(1, setup)
        if handle.operations.count > 1 { handle.endOperation(.done) }
        handle.end(1)
        device.reset()
        #expect(handle.operations.last == .reset)
        #expect(handle.operations.filter { $0 == .reset }.count == 2)
    }

    @Test func `a device that cannot be reset stays attached`() {
        device.reset()
        handle.endOperation(.refused, warnings: ["reset failed: Other error"])
        #expect(port.disconnections == 0)
        #expect(log.all == ["warning: host 1:4: reset failed: Other error"])
        device.reset()
        #expect(handle.operations == [.reset, .reset])
    }

    // MARK: - Disconnection

    @Test func `a device that becomes another one in a reset is disconnected`() {
        device.reset()
        control(1, .getDeviceDescriptor)
        handle.endOperation(.disconnected)
        #expect(port.take() == ["1 disconnected 0"])
        #expect(port.disconnections == 1)
    }

    @Test func `a disconnection ends all transfers and operations and is reported once`() {
        var disconnections = 0
        device.whenDisconnected = { disconnections += 1 }
        bulk(1, Self.bulkIn)
        bulk(2, Self.bulkIn)
        control(3, .clearHalt(0x02))
        bulk(4, Self.bulkOut)
        handle.end(1, .disconnected)
        device.deviceDisconnected()
        handle.end(2, .cancelled)
        handle.endOperation(.disconnected)
        bulk(5, Self.bulkOut)
        #expect(
            port.take() == [
                "1 disconnected 0", "3 disconnected 0", "4 disconnected 0", "2 disconnected 0",
                "5 disconnected 0",
            ])
        #expect(port.disconnections == 1)
        #expect(disconnections == 1)
        #expect(handle.inFlightIDs == [])
    }

    @Test func `a disconnection that shows at submission is reported`() {
        handle.results = [.disconnected]
        bulk(1, Self.bulkIn)
        #expect(port.take() == ["1 disconnected 0"])
        #expect(port.disconnections == 1)
        device.reset()
        #expect(handle.operations == [])
    }

    @Test func `a disconnection while waiting transfers start ends them all`() {
        control(1, .setConfiguration(1))
        bulk(2, Self.bulkIn)
        bulk(3, Self.bulkIn)
        handle.results = [.disconnected]
        handle.endOperation(.done)
        #expect(port.take().sorted() == ["1 completed 0", "2 disconnected 0", "3 disconnected 0"])
        #expect(port.disconnections == 1)
    }

    @Test func `a detached device cancels its transfers and completes none`() {
        bulk(1, Self.bulkIn)
        control(2, .clearHalt(0x81))
        bulk(3, Self.bulkIn)
        device.detached()
        #expect(handle.cancelled == [1])
        handle.end(1, .cancelled)
        handle.endOperation(.done)
        #expect(port.take() == [])
        #expect(handle.inFlightIDs == [])
    }
}
