// SPDX-License-Identifier: Apache-2.0

import BackendKit
import Foundation
import Glibc
import Logging
import Platform
import TestKit
import Testing
import USB

@testable import HostUSB

/// What the operator is told.
struct HostBackendTests {
    let catalog = BackendCatalog(HostBackend.self)
    let context: BackendContext

    init() throws {
        context = BackendContext(loop: try EpollLoop(), logger: .silent)
    }

    private func refusal(_ text: String) -> String? {
        do throws(BackendError) {
            _ = try catalog.makeBackend(text, context: context)
            return nil
        } catch {
            return error.reason
        }
    }

    @Test func `a device that is not there is named together with those that are`() {
        let reason = refusal("host:bus=250,address=127")
        #expect(reason?.hasPrefix("no device 250:127; this host has") == true)
    }

    @Test func `a device node stands for bus and address`() {
        let reason = refusal("/dev/bus/usb/250/127")
        #expect(reason?.hasPrefix("no device 250:127; this host has") == true)
    }

    @Test(arguments: [
        "host:bus=0,address=1", "host:bus=256,address=1", "host:bus=1,address=0",
        "host:bus=1,address=128", "host:bus=x,address=1",
    ])
    func `bus and address are within bounds`(text: String) {
        #expect(refusal(text)?.contains("must be a number from 1 to") == true)
    }

    @Test func `the list of devices has ready-made specifications`() {
        let names = [
            HostDeviceName(
                bus: 1, address: 4, vendor: 0x46f4, product: 1, words: "QEMU USB HARDDRIVE"),
            HostDeviceName(bus: 2, address: 12, vendor: 0x627, product: 1, words: nil),
        ]
        #expect(
            Diagnosis.noDevice(bus: 1, address: 9, of: names).reason == """
                no device 1:9; this host has:
                  host:bus=1,address=4  46f4:0001 QEMU USB HARDDRIVE
                  host:bus=2,address=12  0627:0001
                """)
        #expect(
            Diagnosis.noDevice(bus: 1, address: 9, of: []).reason
                == "no device 1:9; this host has no USB devices")
    }

    @Test func `a missing permission comes with the rule that gives it`() {
        let name = HostDeviceName(bus: 1, address: 4, vendor: 0x46f4, product: 1, words: nil)
        let reason = Diagnosis.cannotOpen(name, .access).reason
        #expect(reason.hasPrefix("cannot open /dev/bus/usb/001/004 (46f4:0001): permission denied"))
        #expect(
            reason.contains(
                "SUBSYSTEM==\"usb\", ATTR{idVendor}==\"46f4\", ATTR{idProduct}==\"0001\", "
                    + "MODE=\"0660\", GROUP=\"plugdev\""))
    }

    @Test func `who has a device is told as far as it can be seen`() {
        let name = HostDeviceName(bus: 1, address: 4, vendor: 1, product: 2)
        func reason(_ programs: [String], seesAll: Bool) -> String {
            Diagnosis.cannotOpen(name, .taken(by: programs), seesAll: seesAll).reason
        }
        let start = "host:bus=1,address=4 (0001:0002) is passed on already, by "
        #expect(reason([], seesAll: true) == start + "another --device of this server")
        #expect(
            reason([], seesAll: false) == start
                + "another --device of this server, or by a program of another user")
        #expect(reason(["a", "b"], seesAll: false) == start + "a, b")
    }

    @Test func `a device in use comes with its users`() {
        let name = HostDeviceName(bus: 1, address: 4, vendor: 1, product: 2, words: "X")
        let reason = Diagnosis.nothingClaimed(
            name,
            problems: [
                "interface 0 cannot be claimed: Resource busy "
                    + "(held by 'usbfs', in use by qemu (process 812))"
            ]
        ).reason
        #expect(
            reason == "/dev/bus/usb/001/004 (0001:0002 X): interface 0 cannot be claimed: "
                + "Resource busy (held by 'usbfs', in use by qemu (process 812))")
    }

    @Test func `equal devices come with what tells them apart`() {
        let rule = DeviceRule.ids(vendor: 0x46f4, product: 1, serial: nil)
        let one = HostDeviceName(
            bus: 1, address: 4, vendor: 0x46f4, product: 1, portPath: "1-1", words: "STICK",
            serial: "A,1")
        let two = HostDeviceName(
            bus: 1, address: 5, vendor: 0x46f4, product: 1, portPath: "1-2.3", words: "STICK")
        #expect(
            Diagnosis.ambiguous(rule, candidates: [one, two]).reason == """
                'host:vendor=0x46f4,product=0x0001' means 2 devices; name one:
                  host:port=1-1 or host:vendor=0x46f4,product=0x0001,serial=A,,1  46f4:0001 STICK
                  host:port=1-2.3  46f4:0001 STICK
                """)
    }

    @Test func `a serial number that several have tells nothing apart`() {
        let rule = DeviceRule.ids(vendor: 0x46f4, product: 1, serial: "1")
        let names = ["1-1", "1-2"].map {
            HostDeviceName(
                bus: 1, address: 4, vendor: 0x46f4, product: 1, portPath: $0, serial: "1")
        }
        let reason = Diagnosis.ambiguous(rule, candidates: names).reason
        #expect(reason.hasSuffix("\n  host:port=1-1  46f4:0001\n  host:port=1-2  46f4:0001"))
    }

    @Test(arguments: [
        "host:port=250-1.2", "host:vendor=ffff,product=0xffff",
        "host:vendor=0xffff,product=0xffff,serial=none",
    ])
    func `what has a rule that lasts may come later`(text: String) {
        #expect(refusal(text) == nil)
    }

    @Test func `of several devices the first that nobody else has is opened`() {
        let first = FirstOpened(of: [1, 2, 3]) { choice throws(OpeningError) in
            guard choice == 2 else { throw .taken(by: []) }
            return choice * 10
        }
        #expect(first.index == 1)
        #expect(first.result == .success(20))
    }

    @Test func `of several devices that cannot be opened one without permission is told of`() {
        func failure(_ errors: [OpeningError]) -> FirstOpened<Int> {
            FirstOpened(of: errors) { error throws(OpeningError) in throw error }
        }
        let taken = failure([.taken(by: ["x"]), .refused(.noDevice)])
        #expect(taken.index == 0)
        #expect(taken.result == .failure(.taken(by: ["x"])))
        let denied = failure([.taken(by: ["x"]), .refused(.access)])
        #expect(denied.index == 1)
        #expect(denied.result == .failure(.refused(.access)))
    }

    @Test func `the program's end does not wait for a device that does not answer`() throws {
        let loop = ManualLoop()
        loop.tick = .seconds(1)
        let (logger, lines) = LogRecorder.make()
        let backend = try #require(
            try catalog.makeBackend(
                "host:port=250-1.2", context: BackendContext(loop: loop, logger: logger))
                as? HostBackend)
        let answer = DispatchSemaphore(value: 0)
        backend.lookout.run {
            answer.wait()
        } completion: {
        }
        backend.isLooking = true
        backend.stop()
        #expect(lines.all.count == 1)
        #expect(lines.all.first?.contains("a device does not answer") == true)
        answer.signal()
    }

    @Test func `a bus without bandwidth is told of, and other refusals are just that`() {
        func outcome(_ result: LibUSBError, _ cause: CInt) -> DeviceOperation.Outcome {
            DeviceControl.outcome(of: "setting 2 of interface 1") {
                errno = cause
                return result.rawValue
            }
        }
        let full = outcome(.other, ENOSPC)
        #expect(full.result == .refused)
        #expect(
            full.warnings.first?.hasPrefix(
                "the host's bus has no bandwidth left for setting 2 of interface 1") == true)
        #expect(outcome(.other, EPIPE) == .init(result: .refused))
        #expect(outcome(.noDevice, ENOSPC) == .init(result: .disconnected))
        #expect(outcome(LibUSBError(rawValue: 0), ENOSPC) == .init(result: .done))
    }

    @Test func `the memory limit is told as it is`() throws {
        let folder = try TemporaryFolder()
        let file = folder.file("limit")
        try Data("32\n".utf8).write(to: URL(fileURLWithPath: file))
        #expect(
            Diagnosis.memoryLimit(4096, file: file)
                == "a transfer of 4096 bytes is over the kernel's limit for USB transfers, which all "
                + "programs share (32 MiB now); raise it: echo 64 >\(file)")
    }
}

/// What is read from the kernel's file systems, with folders of the test in their place.
struct SystemFilesTests {
    private let folder: TemporaryFolder
    private var root: String { folder.path }

    init() throws { folder = try TemporaryFolder() }

    private func write(_ text: String, to path: String) throws {
        let url = URL(fileURLWithPath: root + "/" + path)
        try FileManager.default.createDirectory(
            at: url.deletingLastPathComponent(), withIntermediateDirectories: true)
        try Data(text.utf8).write(to: url)
    }

    private func link(_ target: String, at path: String) throws {
        let url = URL(fileURLWithPath: root + "/" + path)
        try FileManager.default.createDirectory(
            at: url.deletingLastPathComponent(), withIntermediateDirectories: true)
        try FileManager.default.createSymbolicLink(
            atPath: url.path, withDestinationPath: target)
    }

    @Test func `a device's names are put together`() throws {
        try write("QEMU\n", to: "1-2/manufacturer")
        try write("USB HARDDRIVE\n", to: "1-2/product")
        try write("only product\n", to: "1-3/product")
        #expect(SystemFiles.name(of: "1-2", devices: root) == "QEMU USB HARDDRIVE")
        #expect(SystemFiles.name(of: "1-3", devices: root) == "only product")
        #expect(SystemFiles.name(of: "1-4", devices: root) == nil)
    }

    @Test func `two lanes of SuperSpeedPlus are SuperSpeedPlus`() throws {
        try write("20000\n", to: "2-1/speed")
        try write("unknown\n", to: "2-2/speed")
        #expect(SystemFiles.speed(of: "2-1", devices: root) == .superSpeedPlus)
        #expect(SystemFiles.speed(of: "2-2", devices: root) == nil)
        #expect(SystemFiles.speed(of: "2-3", devices: root) == nil)
        #expect(LibUSBDevice.speed(5) == .superSpeedPlus)
        #expect(LibUSBDevice.speed(6) == .superSpeedPlus)
        #expect(LibUSBDevice.speed(0) == nil)
        #expect(LibUSBDevice.speed(7) == nil)
    }

    @Test func `a device's name cannot play with the terminal`() throws {
        try write("\u{1b}[2Jevil\u{202e} \u{7}name\n", to: "1-2/product")
        #expect(SystemFiles.name(of: "1-2", devices: root) == "[2Jevil name")
    }

    @Test func `an interface's driver is found in any configuration`() throws {
        try link("../../../../bus/usb/drivers/usb-storage", at: "1-2:1.0/driver")
        try link("../../../../bus/usb/drivers/usbfs", at: "1-2:2.1/driver")
        #expect(SystemFiles.driver(ofInterface: 0, of: "1-2", devices: root) == "usb-storage")
        #expect(SystemFiles.driver(ofInterface: 1, of: "1-2", devices: root) == "usbfs")
        #expect(SystemFiles.driver(ofInterface: 2, of: "1-2", devices: root) == nil)
    }

    @Test func `the programs that have a node open are named`() throws {
        try write("qemu-system-x86\n", to: "4000001/comm")
        try link("/dev/bus/usb/001/004", at: "4000001/fd/7")
        try write("other\n", to: "4000002/comm")
        try link("/dev/bus/usb/001/005", at: "4000002/fd/7")
        #expect(
            SystemFiles.holders(ofNode: "/dev/bus/usb/001/004", processes: root)
                == ["qemu-system-x86 (process 4000001)"])
    }
}
