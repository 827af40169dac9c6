// SPDX-License-Identifier: Apache-2.0

import Foundation
import TestKit
import Testing
import USB

@testable import HostUSB

/// The backend with real devices, usbfs and libusb; see ``RealDevice``.
@Suite(
    .serialized,
    .enabled(
        if: RealDevice.areAvailable, "it needs USB devices that it may disturb; VMTests runs it"))
struct RealDeviceTests {
    @Test func `a stick is read and written in large transfers, several in flight`() throws {
        let stick = try Stick()
        let device = stick.device
        let pattern = (0..<1 << 20).map { UInt8(truncatingIfNeeded: $0 &* 31 >> 3) }

        try stick.command(Stick.writeBlocks(64, count: 2048), dataIn: false, count: 1 << 20)
        let sent = try device.write(pattern, to: stick.outNumber)
        #expect(sent.status == .completed)
        #expect(sent.transferred == 1 << 20)
        #expect(try stick.status() == 0)

        // One transfer, sixteen transfers, and one transfer with many segments.
        try stick.command(Stick.readBlocks(64, count: 2048), dataIn: true, count: 1 << 20)
        let (completion, data) = try device.read(1 << 20, from: stick.inNumber)
        #expect(completion.status == .completed)
        #expect(data == pattern)
        #expect(try stick.status() == 0)

        try stick.command(Stick.readBlocks(64, count: 2048), dataIn: true, count: 1 << 20)
        let pieces = (0..<16).map { _ in Bytes([UInt8](repeating: 0, count: 1 << 16)) }
        let ids = try pieces.map {
            try device.start(
                EndpointAddress(stick.inNumber, .in), .bulk(stream: 0), $0.buffer)
        }
        for id in ids { #expect(try device.end(of: id).transferred == 1 << 16) }
        #expect(device.order.suffix(16) == ids[...])
        #expect(pieces.flatMap(\.content) == pattern)
        #expect(try stick.status() == 0)

        try stick.command(Stick.readBlocks(64, count: 2048), dataIn: true, count: 1 << 20)
        let parts = (0..<64).map { _ in Bytes([UInt8](repeating: 0, count: 1 << 14)) }
        let scattered = try device.start(
            EndpointAddress(stick.inNumber, .in), .bulk(stream: 0), Bytes.buffer(parts))
        #expect(try device.end(of: scattered).transferred == 1 << 20)
        #expect(parts.flatMap(\.content) == pattern)
        #expect(try stick.status() == 0)
        device.stop()
    }

    @Test func `a short packet completes a transfer with fewer bytes`() throws {
        let stick = try Stick()
        try stick.command([0x12, 0, 0, 0, 36, 0], dataIn: true, count: 36)
        let (completion, data) = try stick.device.read(4096, from: stick.inNumber)
        #expect(completion.status == .completed)
        #expect(data.count == 36)
        #expect(String(decoding: data[8..<12], as: UTF8.self) == "QEMU")
        #expect(try stick.status() == 0)
        stick.device.stop()
    }

    @Test func `an unsupported request is a stall, and the next request works`() throws {
        let stick = try Stick()
        let device = stick.device
        for _ in 0..<3 {
            let unknown = try device.control(
                SetupPacket(requestType: 0x80, request: 6, value: 0x2f00, index: 0, length: 64))
            #expect(unknown.completion.status == .stalled)
            let known = try device.control(.getDeviceDescriptor)
            #expect(known.completion.status == .completed)
            #expect(known.data.count == 18)
            #expect(Array(known.data[8..<12]) == [0xf4, 0x46, 0x01, 0x00])
        }
        device.stop()
    }

    @Test func `a halted endpoint works again once its halt is cleared`() throws {
        let stick = try Stick()
        let device = stick.device
        // The device stalls an invalid command block wrapper.
        let invalid = try device.write([UInt8](repeating: 0xee, count: 31), to: stick.outNumber)
        #expect([.stalled, .completed].contains(invalid.status))
        let (refused, _) = try device.read(13, from: stick.inNumber)
        #expect(refused.status == .stalled)
        // Reset Recovery: class reset, then both halts (Bulk-Only Transport, 5.3.4).
        let reset = try device.control(
            SetupPacket(requestType: 0x21, request: 0xff, value: 0, index: 0, length: 0))
        #expect(reset.completion.status == .completed)
        for endpoint in [UInt16(stick.inNumber) | 0x80, UInt16(stick.outNumber)] {
            let cleared = try device.control(.clearHalt(endpoint))
            #expect(cleared.completion.status == .completed)
        }
        try stick.command(Stick.readBlocks(0, count: 8), dataIn: true, count: 4096)
        #expect(try device.read(4096, from: stick.inNumber).0.transferred == 4096)
        #expect(try stick.status() == 0)
        // An endpoint that does not exist.
        #expect(try device.control(.clearHalt(0x8e)).completion.status == .stalled)
        device.stop()
    }

    @Test func `an unknown configuration is refused and the device stays usable`() throws {
        let stick = try Stick()
        let device = stick.device
        #expect(try device.control(.setConfiguration(9)).completion.status == .stalled)
        #expect(try device.control(.setInterface(0, 9)).completion.status == .stalled)
        #expect(try device.control(.setInterface(0, 0)).completion.status == .completed)
        #expect(try device.control(.setConfiguration(0)).completion.status == .completed)
        let (unconfigured, _) = try device.read(13, from: stick.inNumber)
        #expect(unconfigured.status == .failed)
        #expect(try device.control(.setConfiguration(1)).completion.status == .completed)
        try stick.command(Stick.readBlocks(0, count: 8), dataIn: true, count: 4096)
        #expect(try device.read(4096, from: stick.inNumber).0.transferred == 4096)
        #expect(try stick.status() == 0)
        device.stop()
        let driver = RealDevice.driver(vendor: Stick.ids.vendor, product: Stick.ids.product)
        #expect(driver == "usb-storage")
    }

    @Test func `the host's configuration is restored at the end`() throws {
        let stick = try Stick()
        #expect(try stick.device.control(.setConfiguration(0)).completion.status == .completed)
        stick.device.stop()
        let driver = RealDevice.driver(vendor: Stick.ids.vendor, product: Stick.ids.product)
        #expect(driver == "usb-storage")
    }

    @Test func `a transfer of an unknown endpoint fails`() throws {
        let stick = try Stick()
        let (completion, _) = try stick.device.read(64, from: 13)
        #expect(completion.status == .failed)
        stick.device.stop()
    }

    @Test func `a transfer that waits for the device is cancelled`() throws {
        let keyboard = try Keyboard()
        let id = try keyboard.listen()
        try keyboard.device.turn(within: .milliseconds(200)) { true }
        #expect(!keyboard.device.hasEnded(id))
        try keyboard.device.device.cancel(.init(rawValue: id))
        let end = try keyboard.device.end(of: id)
        #expect(end.status == .cancelled)
        #expect(end.transferred == 0)
        // The endpoint still works.
        let next = try keyboard.listen()
        #expect(!keyboard.device.hasEnded(next))
        keyboard.device.stop()
    }

    @Test func `a reset cancels the transfers in flight and the device works afterwards`() throws {
        let keyboard = try Keyboard()
        let device = keyboard.device
        let pending = try [keyboard.listen(), keyboard.listen()]
        try device.device.reset()
        // Submitted during the reset.
        let after = try device.control(.getDeviceDescriptor)
        #expect(after.completion.status == .completed)
        #expect(after.data.count == 18)
        for id in pending { #expect(try device.end(of: id).status == .cancelled) }
        #expect(try device.control(.setConfiguration(1)).completion.status == .completed)
        let listening = try keyboard.listen()
        #expect(!device.hasEnded(listening))
        #expect(device.disconnections == 0)
        device.stop()
        #expect(RealDevice.driver(vendor: "0627", product: "0001") == "usbhid")
    }

    // MARK: - The memory limit of usbfs

    private static let limit = "/sys/module/usbcore/parameters/usbfs_memory_mb"

    @Test func `transfers beyond the kernel's memory limit wait`() throws {
        let before = try #require(RealDevice.line(Self.limit))
        try RealDevice.write("1", to: Self.limit)
        defer { try? RealDevice.write(before, to: Self.limit) }
        let stick = try Stick()
        let device = stick.device
        try stick.command(Stick.readBlocks(0, count: 8192), dataIn: true, count: 4 << 20)
        let pieces = (0..<16).map { _ in Bytes([UInt8](repeating: 0, count: 1 << 18)) }
        let ids = try pieces.map {
            try device.start(
                EndpointAddress(stick.inNumber, .in), .bulk(stream: 0), $0.buffer)
        }
        for id in ids {
            let end = try device.end(of: id)
            #expect(end.status == .completed)
            #expect(end.transferred == 1 << 18)
        }
        #expect(device.order.suffix(16) == ids[...])
        #expect(try stick.status() == 0)
        #expect(device.log.all == [])
        device.stop()
    }

    @Test func `a transfer beyond the limit fails and the limit is named`() throws {
        let before = try #require(RealDevice.line(Self.limit))
        try RealDevice.write("1", to: Self.limit)
        defer { try? RealDevice.write(before, to: Self.limit) }
        let stick = try Stick()
        let device = stick.device
        try stick.command(Stick.readBlocks(0, count: 8192), dataIn: true, count: 4 << 20)
        let (end, _) = try device.read(4 << 20, from: stick.inNumber)
        #expect(end.status == .failed)
        #expect(device.log.all.contains { $0.contains("usbfs_memory_mb") })
        device.stop()
    }

    // MARK: - Gadget zero: Linux's own device on dummy_hcd

    /// Configuration 3 is a source and a sink of zeroes, configuration 2 loops data back.
    private struct GadgetZero {
        let device: RealDevice
        let source: (in: UInt8, out: UInt8)
        let loop: (in: UInt8, out: UInt8)

        init() throws {
            device = try RealDevice(vendor: "0525", product: "a4a0")
            source = try device.bulkEndpoints(ofConfigurationAt: 0)
            loop = try device.bulkEndpoints(ofConfigurationAt: 1)
        }

        func configure(_ value: UInt16) throws {
            #expect(try device.control(.setConfiguration(value)).completion.status == .completed)
        }
    }

    @Test func `gadget zero's source and sink run with many transfers in flight`() throws {
        let zero = try GadgetZero()
        let device = zero.device
        try zero.configure(3)
        let inputs = (0..<64).map { _ in Bytes([UInt8](repeating: 0xaa, count: 4096)) }
        let ids = try inputs.map {
            try device.start(EndpointAddress(zero.source.in, .in), .bulk(stream: 0), $0.buffer)
        }
        let full = [Int](repeating: 4096, count: 64)
        #expect(try ids.map { try device.end(of: $0).transferred } == full)
        #expect(inputs.allSatisfy { $0.content.allSatisfy { $0 == 0 } })
        #expect(device.order.suffix(64) == ids[...])
        let outputs = try (0..<64).map { _ in
            try device.start(
                EndpointAddress(zero.source.out, .out), .bulk(stream: 0),
                Bytes([UInt8](repeating: 0, count: 4096)).buffer)
        }
        #expect(try outputs.map { try device.end(of: $0).transferred } == full)
        device.stop()
    }

    @Test func `gadget zero loops bytes back, and its configurations change`() throws {
        let zero = try GadgetZero()
        let device = zero.device
        for round in 0..<3 as Range<UInt8> {
            try zero.configure(2)
            let sent = (0..<4096).map { UInt8(truncatingIfNeeded: $0) &+ round }
            #expect(try device.write(sent, to: zero.loop.out).transferred == 4096)
            let (completion, received) = try device.read(4096, from: zero.loop.in)
            #expect(completion.status == .completed)
            #expect(received == sent)
            try zero.configure(3)
            let (_, zeroes) = try device.read(512, from: zero.source.in)
            #expect(zeroes == [UInt8](repeating: 0, count: 512))
        }
        device.stop()
    }

    @Test func `an endpoint that the guest halts stalls until it is cleared`() throws {
        let zero = try GadgetZero()
        let device = zero.device
        try zero.configure(3)
        let address = EndpointAddress(zero.source.in, .in)
        let halt = SetupPacket(
            requestType: 2, request: 3, value: 0, index: UInt16(address.rawValue), length: 0)
        for _ in 0..<3 {
            #expect(try device.control(halt).completion.status == .completed)
            let ids = try (0..<4).map { _ in
                try device.start(
                    address, .bulk(stream: 0), Bytes([UInt8](repeating: 1, count: 512)).buffer)
            }
            let ends = try ids.map { try device.end(of: $0).status }
            #expect(ends.first == .stalled)
            #expect(ends.allSatisfy { $0 == .cancelled || $0 == .stalled })
            let cleared = try device.control(.clearHalt(UInt16(address.rawValue)))
            #expect(cleared.completion.status == .completed)
            #expect(try device.read(512, from: zero.source.in).0.transferred == 512)
        }
        device.stop()
    }

    // MARK: - Disconnection: VMTests unplugs the device when the file exists

    @Test func `unplugging a device ends all its transfers`() throws {
        let keyboard = try Keyboard()
        let device = keyboard.device
        let ids = try (0..<4).map { _ in try keyboard.listen() }
        try Data().write(to: URL(filePath: "/tmp/unplug-keyboard"))
        for id in ids { #expect(try device.end(of: id).status == .disconnected) }
        #expect(device.disconnections == 1)
        let late = try keyboard.listen()
        #expect(try device.end(of: late).status == .disconnected)
        let control = try device.control(.getDeviceDescriptor)
        #expect(control.completion.status == .disconnected)
        #expect(device.log.all.contains { $0.contains("was disconnected") })
        device.stop()
    }

    @Test func `the unplugging of an idle device is noticed`() throws {
        let stick = try Stick()
        try Data().write(to: URL(filePath: "/tmp/unplug-stick"))
        try stick.device.turn { stick.device.disconnections > 0 }
        #expect(stick.device.disconnections == 1)
        stick.device.stop()
    }
}

/// A keyboard whose keys are not pressed, so its transfers wait.
struct Keyboard {
    let device: RealDevice

    init() throws {
        device = try RealDevice(vendor: "0627", product: "0001")
        let set = try device.control(.setConfiguration(1))
        #expect(set.completion.status == .completed)
        // SET_IDLE 0: a report only when a key changes.
        let idle = try device.control(
            SetupPacket(requestType: 0x21, request: 10, value: 0, index: 0, length: 0))
        #expect(idle.completion.status == .completed)
    }

    func listen() throws -> UInt64 {
        try device.start(
            EndpointAddress(1, .in), .interrupt, Bytes([UInt8](repeating: 0, count: 8)).buffer)
    }
}
