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

/// The backend's errors, and its stop.
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

    @Test func `the error for a missing device lists those that are connected`() {
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
                bus: 1, address: 4, vendor: 0x46f4, product: 1, modelName: "QEMU USB HARDDRIVE"),
            HostDeviceName(bus: 2, address: 12, vendor: 0x627, product: 1, modelName: nil),
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

    @Test func `the error for a missing permission has the udev rule that grants it`() {
        let name = HostDeviceName(bus: 1, address: 4, vendor: 0x46f4, product: 1, modelName: nil)
        let reason = Diagnosis.cannotOpen(name, .access).reason
        #expect(reason.hasPrefix("cannot open /dev/bus/usb/001/004 (46f4:0001): permission denied"))
        #expect(
            reason.contains(
                "SUBSYSTEM==\"usb\", ATTR{idVendor}==\"46f4\", ATTR{idProduct}==\"0001\", "
                    + "MODE=\"0660\", GROUP=\"plugdev\""))
    }

    @Test func `the program that has a device is named if this user can see it`() {
        let name = HostDeviceName(bus: 1, address: 4, vendor: 1, product: 2)
        func reason(_ programs: [String], seesAll: Bool) -> String {
            Diagnosis.cannotOpen(name, .locked(by: programs), seesAll: seesAll).reason
        }
        let start = "host:bus=1,address=4 (0001:0002) is passed through already, by "
        #expect(reason([], seesAll: true) == start + "another --device of this server")
        #expect(
            reason([], seesAll: false) == start
                + "another --device of this server, or by a program of another user")
        #expect(reason(["a", "b"], seesAll: false) == start + "a, b")
    }

    @Test func `the error for a device in use names its users`() {
        let name = HostDeviceName(bus: 1, address: 4, vendor: 1, product: 2, modelName: "X")
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

    @Test func `the error for an ambiguous rule lists unambiguous ones`() {
        let rule = DeviceRule.ids(vendor: 0x46f4, product: 1, serial: nil)
        let one = HostDeviceName(
            bus: 1, address: 4, vendor: 0x46f4, product: 1, portPath: "1-1", modelName: "STICK",
            serial: "A,1")
        let two = HostDeviceName(
            bus: 1, address: 5, vendor: 0x46f4, product: 1, portPath: "1-2.3", modelName: "STICK")
        #expect(
            Diagnosis.ambiguous(rule, candidates: [one, two]).reason == """
                'host:vendor=0x46f4,product=0x0001' matches 2 devices; name one of them:
                  host:port=1-1 or host:vendor=0x46f4,product=0x0001,serial=A,,1  46f4:0001 STICK
                  host:port=1-2.3  46f4:0001 STICK
                """)
    }

    @Test func `a serial number that several devices have is not proposed`() {
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
    func `a rule that is not about an address waits for its device`(text: String) {
        #expect(refusal(text) == nil)
    }

    @Test func `of several devices the first that is not locked is opened`() {
        let first = FirstOpened(of: [1, 2, 3]) { choice throws(OpeningError) in
            guard choice == 2 else { throw .locked(by: []) }
            return choice * 10
        }
        #expect(first.index == 1)
        #expect(first.result == .success(20))
    }

    @Test func `of several devices that cannot be opened, a missing permission is reported first`()
    {
        func failure(_ errors: [OpeningError]) -> FirstOpened<Int> {
            FirstOpened(of: errors) { error throws(OpeningError) in throw error }
        }
        let taken = failure([.locked(by: ["x"]), .failed(.noDevice)])
        #expect(taken.index == 0)
        #expect(taken.result == .failure(.locked(by: ["x"])))
        let denied = failure([.locked(by: ["x"]), .failed(.access)])
        #expect(denied.index == 1)
        #expect(denied.result == .failure(.failed(.access)))
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
        backend.jobs.run {
            answer.wait()
        } completion: {
        }
        backend.isProbing = true
        backend.stop()
        #expect(lines.all.count == 1)
        #expect(lines.all.first?.contains("a device does not answer") == true)
        answer.signal()
    }

    @Test func `a lack of bandwidth is recognised among the refusals`() {
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

    @Test func `the message about the memory limit has its present value`() throws {
        let folder = try TemporaryFolder()
        let file = folder.file("limit")
        try Data("32\n".utf8).write(to: URL(fileURLWithPath: file))
        #expect(
            Diagnosis.memoryLimit(4096, file: file)
                == "a transfer of 4096 bytes is over the kernel's limit for USB transfers, which all "
                + "programs share (32 MiB now); raise it: echo 64 >\(file)")
    }
}
