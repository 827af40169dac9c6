// SPDX-License-Identifier: Apache-2.0

import Platform
import TestKit
import Testing
import USB

@testable import HostUSB

/// The opening, the release and the descriptors of real devices. The suite's other tests unplug
/// devices, so they come later: tests run in the order of files and lines.
extension RealDeviceTests {
    @Test func `the host's driver is detached and attached again`() throws {
        let ids = Stick.ids
        #expect(RealDevice.driver(vendor: ids.vendor, product: ids.product) == "usb-storage")
        let stick = try Stick()
        #expect(RealDevice.driver(vendor: ids.vendor, product: ids.product) == "usbfs")
        stick.device.stop()
        #expect(RealDevice.driver(vendor: ids.vendor, product: ids.product) == "usb-storage")
        #expect(stick.device.log.all == [])
    }

    @Test func `the driver is detached and attached again without blocking the loop`() throws {
        let ids = Stick.ids
        for _ in 0..<3 {
            #expect(RealDevice.driver(vendor: ids.vendor, product: ids.product) == "usb-storage")
            let stick = try Stick(isServing: true)
            #expect(RealDevice.driver(vendor: ids.vendor, product: ids.product) == "usbfs")
            try stick.command(Stick.readBlocks(0, count: 8), dataIn: true, count: 4096)
            _ = try stick.device.start(
                EndpointAddress(stick.inNumber, .in), .bulk(stream: 0),
                Bytes([UInt8](repeating: 0, count: 4096)).buffer)
            // This transfer waits for the end of the turn, does not reach the kernel, and ends
            // last.
            _ = try stick.device.start(
                EndpointAddress(stick.inNumber, .in), .isochronous,
                Bytes([UInt8](repeating: 0, count: 8)).buffer)
            try stick.device.stopLater()
            #expect(RealDevice.driver(vendor: ids.vendor, product: ids.product) == "usb-storage")
            #expect(stick.device.log.all.filter { !$0.hasSuffix("is plugged in") } == [])
        }
    }

    @Test(arguments: [false, true])
    func `a second rule for a device is refused with the reason`(isServing: Bool) throws {
        let stick = try Stick()
        do {
            _ = try RealDevice(
                vendor: Stick.ids.vendor, product: Stick.ids.product, isServing: isServing)
            Issue.record("opened twice")
        } catch {
            #expect(
                "\(error)".hasSuffix(
                    "is passed through already, by another --device of this server"))
        }
        // The refused rule has not changed the device.
        try stick.command([0, 0, 0, 0, 0, 0], dataIn: false, count: 0)
        _ = try stick.status()
        stick.device.stop()
        try Stick(isServing: isServing).device.stop()
    }

    /// Other programs claim interfaces without the lock.
    @Test(arguments: [false, true])
    func `a device in use is refused and its user is named`(isServing: Bool) throws {
        let context = try LibUSBContext(loop: EpollLoop())
        let node = try #require(
            context.devices().first { $0.vendor == 0x46f4 && $0.product == 1 })
        let user = DeviceControl(try node.opener.open(), portPath: node.portPath, node: "")
        #expect(user.claimDevice().claimed == [0])
        // The first refusal does not cause the second.
        for _ in 0..<2 {
            do {
                _ = try RealDevice(
                    vendor: Stick.ids.vendor, product: Stick.ids.product, isServing: isServing)
                Issue.record("opened twice")
            } catch {
                #expect("\(error)".contains("interface 0 cannot be claimed"))
                #expect("\(error)".contains("held by 'usbfs'"))
            }
        }
        user.release(resetting: false)
        user.close()
        try Stick().device.stop()
    }

    @Test func `a device that is stopped with transfers in flight is released to its driver`()
        throws
    {
        let keyboard = try Keyboard()
        for _ in 0..<8 { _ = try keyboard.listen() }
        keyboard.device.stop()
        #expect(RealDevice.driver(vendor: "0627", product: "0001") == "usbhid")
        #expect(keyboard.device.log.all == [])
    }

    @Test func `a device that is stopped on a running loop is released to its driver`() throws {
        let keyboard = try Keyboard()
        for _ in 0..<8 { _ = try keyboard.listen() }
        try keyboard.device.stopLater()
        #expect(RealDevice.driver(vendor: "0627", product: "0001") == "usbhid")
        #expect(keyboard.device.log.all == [])
    }

    @Test func `a cancelled transfer has ended at once`() throws {
        let keyboard = try Keyboard()
        let device = keyboard.device
        let ids = try (0..<8).map { _ in try keyboard.listen() }
        for id in ids.reversed() {
            try device.device.cancel(.init(rawValue: id))
            #expect(device.hasEnded(id))
        }
        device.stop()
    }

    /// The transfers have more requests than libusb reaps in a pass.
    @Test func `all transfers have ended when a reset returns`() throws {
        let keyboard = try Keyboard()
        let ids = try (0..<64).map { _ in try keyboard.listen() }
        try keyboard.device.device.reset()
        #expect(ids.allSatisfy { keyboard.device.hasEnded($0) })
        keyboard.device.stop()
    }

    @Test(arguments: [("STREAMS", UInt8(4)), ("PLAIN", 0)])
    func `a guest is offered the streams that the host's controller has`(
        serial: String, exponent: UInt8
    ) throws {
        let disk = try RealDevice(vendor: "46f4", product: "0003", serial: serial)
        let (completion, bytes) = try disk.control(
            SetupPacket(requestType: 0x80, request: 6, value: 0x200, index: 0, length: 255))
        #expect(completion.status == .completed)
        let offer = StreamEndpoint.greatest(in: bytes, configuration: 1)
        #expect(offer?.exponent ?? 0 == exponent)
        let classes = DescriptorSequence(bytes).filter { $0.type == .interface }.map { $0.bytes[5] }
        #expect(classes == [exponent == 0 ? 0xff : 8])
        #expect(
            disk.log.all.contains { $0.contains("the guest is not offered any") }
                == (exponent == 0))
        disk.stop()
    }
}
