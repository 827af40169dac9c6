// SPDX-License-Identifier: Apache-2.0

import Testing
import USB

@Suite struct DefaultControlPipeTests {
    /// A control pipe with a host that sends requests to it.
    struct Fixture {
        var pipe: DefaultControlPipe
        var change: DefaultControlPipe.Change?
        private let memory = Memory()

        private final class Memory {
            let bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: 512, alignment: 8)
            deinit { bytes.deallocate() }
        }

        init(_ speed: USBSpeed = .high, remoteWakeup: Bool = true, configured: Bool = true) {
            pipe = DefaultControlPipe(
                exampleDescription(speed: speed, remoteWakeup: remoteWakeup))
            if configured { _ = ask(0x00, 9, value: 3) }
            change = nil
        }

        enum Answer: Equatable {
            case data([UInt8])
            case accepted
            case stalled
            case forDevice
        }

        mutating func ask(
            _ requestType: UInt8, _ request: UInt8, value: UInt16 = 0, index: UInt16 = 0,
            length: UInt16 = 0, room: Int? = nil
        ) -> Answer {
            let setup = SetupPacket(
                requestType: requestType, request: request, value: value, index: index,
                length: length)
            let lease = MemoryLease()
            lease.append(
                UnsafeMutableRawBufferPointer(rebasing: memory.bytes[..<(room ?? Int(length))]),
                keeping: memory)
            let transfer = Transfer(
                id: .init(rawValue: 1), endpoint: .control, kind: .control(setup),
                buffer: lease.buffer)
            switch pipe.handle(transfer, setup) {
            case .forDevice: return .forDevice
            case .answered(let completion, let change):
                self.change = change
                switch completion.status {
                case .stalled: return .stalled
                case .completed:
                    return setup.direction == .in
                        ? .data(lease.buffer.bytes(count: completion.transferred)) : .accepted
                default: return .forDevice
                }
            }
        }
    }

    // MARK: - Descriptors

    @Test func `a descriptor is cut to wLength`() {
        var host = Fixture()
        #expect(
            host.ask(0x80, 6, value: 0x0100, length: 8) == .data([18, 1, 0x10, 2, 0xef, 2, 1, 64]))
        #expect(host.ask(0x80, 6, value: 0x0100, length: 0) == .data([]))
        guard case .data(let all) = host.ask(0x80, 6, value: 0x0100, length: 255) else {
            Issue.record("no device descriptor")
            return
        }
        #expect(all.count == 18)
    }

    @Test func `a descriptor is cut to the size of the buffer`() {
        var host = Fixture()
        #expect(host.ask(0x80, 6, value: 0x0100, length: 18, room: 4) == .data([18, 1, 0x10, 2]))
    }

    @Test(
        "each type of descriptor is returned",
        arguments: [0x0100, 0x0200, 0x0300, 0x0301, 0x0600, 0x0700, 0x0f00] as [UInt16])
    func everyKind(value: UInt16) {
        var host = Fixture()
        guard case .data(let bytes) = host.ask(0x80, 6, value: value, length: 255) else {
            Issue.record("descriptor \(value) is stalled")
            return
        }
        #expect(bytes[1] == UInt8(value >> 8))
    }

    @Test(
        "a descriptor that does not exist is stalled",
        arguments: [0x0101, 0x0201, 0x0309, 0x03ee, 0x0400, 0x0500, 0x0601, 0x0800, 0xff00]
            as [UInt16])
    func missingDescriptor(value: UInt16) {
        var host = Fixture()
        #expect(host.ask(0x80, 6, value: value, length: 255) == .stalled)
    }

    @Test func `GET_DESCRIPTOR of an interface is left to the device`() {
        var host = Fixture()
        #expect(host.ask(0x81, 6, value: 0x2200, length: 63) == .forDevice)
        #expect(host.ask(0x82, 6, value: 0x2200, length: 63) == .stalled)
    }

    @Test func `SET_DESCRIPTOR is stalled`() {
        var host = Fixture()
        #expect(host.ask(0x00, 7, value: 0x0100, length: 18) == .stalled)
    }

    // MARK: - Configuration and interfaces

    @Test func `a configuration is selected, returned and deselected`() {
        var host = Fixture(configured: false)
        #expect(host.ask(0x80, 8, length: 1) == .data([0]))
        #expect(host.ask(0x00, 9, value: 3) == .accepted)
        #expect(host.change == .configuration(3))
        #expect(host.ask(0x80, 8, length: 1) == .data([3]))
        #expect(host.ask(0x00, 9, value: 0) == .accepted)
        #expect(host.change == .configuration(0))
        #expect(host.pipe.configuration == 0)
    }

    @Test(
        "a configuration that does not exist is stalled and changes nothing",
        arguments: [1, 2, 4, 0x0103] as [UInt16])
    func wrongConfiguration(value: UInt16) {
        var host = Fixture()
        #expect(host.ask(0x00, 9, value: value) == .stalled)
        #expect(host.change == nil)
        #expect(host.pipe.configuration == 3)
    }

    @Test func `SET_CONFIGURATION with the present value resets settings and halts`() {
        var host = Fixture()
        #expect(host.ask(0x01, 11, value: 1, index: 1) == .accepted)
        host.pipe.halt(EndpointAddress(1, .in))
        #expect(host.ask(0x00, 9, value: 3) == .accepted)
        #expect(host.pipe.alternateSetting(ofInterface: 1) == 0)
        #expect(!host.pipe.isHalted(EndpointAddress(1, .in)))
    }

    @Test func `an alternate setting is selected and returned`() {
        var host = Fixture()
        #expect(host.ask(0x81, 10, index: 1, length: 1) == .data([0]))
        #expect(host.ask(0x01, 11, value: 1, index: 1) == .accepted)
        #expect(host.change == .alternateSetting(1, interface: 1))
        #expect(host.ask(0x81, 10, index: 1, length: 1) == .data([1]))
        #expect(host.ask(0x81, 10, index: 0, length: 1) == .data([0]))
    }

    @Test(
        "settings and interfaces that do not exist are stalled",
        arguments: [(2, 1), (1, 0), (0, 2), (0, 0x0100), (0x0100, 0)] as [(UInt16, UInt16)])
    func wrongSetting(setting: UInt16, interface: UInt16) {
        var host = Fixture()
        #expect(host.ask(0x01, 11, value: setting, index: interface) == .stalled)
        #expect(host.change == nil)
    }

    @Test func `requests to interfaces are stalled if no configuration is selected`() {
        var host = Fixture(configured: false)
        #expect(host.ask(0x81, 10, index: 0, length: 1) == .stalled)
        #expect(host.ask(0x01, 11, value: 0, index: 0) == .stalled)
        #expect(host.ask(0x81, 0, index: 0, length: 2) == .stalled)
    }

    // MARK: - Halts

    @Test func `a halt is set, returned and cleared`() {
        var host = Fixture()
        let endpoint = EndpointAddress(1, .in)
        #expect(host.ask(0x82, 0, index: 0x81, length: 2) == .data([0, 0]))
        #expect(host.ask(0x02, 3, value: 0, index: 0x81) == .accepted)
        #expect(host.change == .haltSet(endpoint))
        #expect(host.pipe.isHalted(endpoint))
        #expect(host.ask(0x82, 0, index: 0x81, length: 2) == .data([1, 0]))
        #expect(host.ask(0x02, 1, value: 0, index: 0x81) == .accepted)
        #expect(host.change == .haltCleared(endpoint))
        #expect(!host.pipe.isHalted(endpoint))
    }

    @Test(
        "endpoints outside of configuration and settings are stalled",
        arguments: [0x01, 0x83, 0x84, 0x91, 0x0181] as [UInt16])
    func wrongEndpoint(index: UInt16) {
        var host = Fixture()
        #expect(host.ask(0x82, 0, index: index, length: 2) == .stalled)
        #expect(host.ask(0x02, 1, value: 0, index: index) == .stalled)
        #expect(host.ask(0x02, 3, value: 0, index: index) == .stalled)
    }

    @Test func `an endpoint exists in its alternate setting only`() {
        var host = Fixture()
        #expect(host.ask(0x82, 0, index: 0x83, length: 2) == .stalled)
        #expect(host.ask(0x01, 11, value: 1, index: 1) == .accepted)
        #expect(host.ask(0x82, 0, index: 0x83, length: 2) == .data([0, 0]))
        #expect(host.ask(0x82, 0, index: 0x02, length: 2) == .stalled)
    }

    @Test func `endpoint 0 exists in every state and does not halt`() {
        var host = Fixture(configured: false)
        #expect(host.ask(0x02, 3, value: 0, index: 0) == .accepted)
        #expect(host.ask(0x82, 0, index: 0x80, length: 2) == .data([0, 0]))
    }

    @Test func `an endpoint has the feature ENDPOINT_HALT only`() {
        var host = Fixture()
        #expect(host.ask(0x02, 3, value: 1, index: 0x81) == .stalled)
    }

    // MARK: - Features

    @Test func `remote wakeup is enabled, returned and disabled`() {
        var host = Fixture()
        #expect(host.ask(0x80, 0, length: 2) == .data([1, 0]))
        #expect(host.ask(0x00, 3, value: 1) == .accepted)
        #expect(host.pipe.isRemoteWakeupEnabled)
        #expect(host.ask(0x80, 0, length: 2) == .data([3, 0]))
        #expect(host.ask(0x00, 1, value: 1) == .accepted)
        #expect(!host.pipe.isRemoteWakeupEnabled)
    }

    @Test func `remote wakeup is stalled if the device does not support it`() {
        var host = Fixture(remoteWakeup: false)
        #expect(host.ask(0x00, 3, value: 1) == .stalled)
        var fast = Fixture(.superSpeed, remoteWakeup: false)
        #expect(fast.ask(0x01, 3, value: 0, index: 0x0200) == .stalled)
    }

    @Test func `at SuperSpeed remote wakeup is a feature of functions`() {
        var host = Fixture(.superSpeed)
        #expect(host.ask(0x00, 3, value: 1) == .stalled)
        #expect(host.ask(0x81, 0, index: 1, length: 2) == .data([1, 0]))
        #expect(host.ask(0x01, 3, value: 0, index: 0x0301) == .accepted)
        #expect(host.ask(0x81, 0, index: 1, length: 2) == .data([3, 0]))
        #expect(host.ask(0x81, 0, index: 0, length: 2) == .data([1, 0]))
        #expect(host.pipe.isRemoteWakeupEnabled)
        #expect(host.ask(0x01, 3, value: 0, index: 0x0001) == .accepted)
        #expect(!host.pipe.isRemoteWakeupEnabled)
        #expect(host.ask(0x01, 3, value: 0, index: 0x0302) == .stalled)
    }

    @Test func `at high speed an interface has no features`() {
        var host = Fixture()
        #expect(host.ask(0x01, 3, value: 0, index: 0x0300) == .stalled)
        #expect(host.ask(0x81, 0, index: 0, length: 2) == .data([0, 0]))
    }

    @Test func `U1 and U2 are enabled at SuperSpeed once configured`() {
        var host = Fixture(.superSpeed, configured: false)
        #expect(host.ask(0x00, 3, value: 48) == .stalled)
        #expect(host.ask(0x00, 9, value: 3) == .accepted)
        #expect(host.ask(0x00, 3, value: 48) == .accepted)
        #expect(host.ask(0x00, 3, value: 49) == .accepted)
        #expect(host.ask(0x80, 0, length: 2) == .data([0x0d, 0]))
        #expect(host.ask(0x00, 1, value: 48) == .accepted)
        #expect(host.ask(0x80, 0, length: 2) == .data([0x09, 0]))
        var slow = Fixture()
        #expect(slow.ask(0x00, 3, value: 48) == .stalled)
    }

    @Test func `test modes and unknown features are stalled`() {
        var host = Fixture()
        #expect(host.ask(0x00, 3, value: 2, index: 0x0100) == .stalled)
        #expect(host.ask(0x00, 3, value: 77) == .stalled)
        #expect(host.ask(0x03, 3, value: 0) == .stalled)
    }

    // MARK: - Other requests

    @Test func `SET_SEL and SET_ISOCH_DELAY are accepted at SuperSpeed only`() {
        var host = Fixture(.superSpeed)
        #expect(host.ask(0x00, 48, length: 6) == .accepted)
        #expect(host.ask(0x00, 48, length: 5) == .stalled)
        #expect(host.ask(0x00, 49, value: 40) == .accepted)
        var slow = Fixture()
        #expect(slow.ask(0x00, 48, length: 6) == .stalled)
        #expect(slow.ask(0x00, 49, value: 40) == .stalled)
    }

    @Test func `SET_ADDRESS is accepted`() {
        var host = Fixture()
        #expect(host.ask(0x00, 5, value: 7) == .accepted)
    }

    @Test func `SYNCH_FRAME and other types of status are stalled`() {
        var host = Fixture()
        #expect(host.ask(0x82, 12, index: 0x81, length: 2) == .stalled)
        #expect(host.ask(0x80, 0, value: 1, length: 4) == .stalled)
    }

    @Test func `a request in the wrong direction is stalled`() {
        var host = Fixture()
        #expect(host.ask(0x00, 6, value: 0x0100, length: 18) == .stalled)
        #expect(host.ask(0x80, 9, value: 3) == .stalled)
        #expect(host.ask(0x80, 99, length: 1) == .stalled)
    }

    @Test func `class and vendor requests are left to the device`() {
        var host = Fixture()
        #expect(host.ask(0xa1, 0xfe, length: 1) == .forDevice)
        #expect(host.ask(0xc0, 1, length: 4) == .forDevice)
        #expect(host.ask(0x21, 10) == .forDevice)
    }

    @Test func `a bus reset returns to the default state`() {
        var host = Fixture()
        _ = host.ask(0x00, 3, value: 1)
        host.pipe.halt(EndpointAddress(1, .in))
        host.pipe.reset()
        #expect(host.pipe.configuration == 0)
        #expect(!host.pipe.isRemoteWakeupEnabled)
        #expect(!host.pipe.isHalted(EndpointAddress(1, .in)))
    }

    @Test("no request traps")
    func everyRequest() {
        for speed in [USBSpeed.high, .superSpeed] {
            var host = Fixture(speed)
            for type in UInt8.min...UInt8.max {
                for request in UInt8.min...UInt8.max {
                    for (value, index) in [(0, 0), (0xffff, 0xffff), (1, 0x0181)] {
                        _ = host.ask(
                            type, request, value: UInt16(value), index: UInt16(index), length: 1)
                    }
                }
            }
        }
    }
}
