// SPDX-License-Identifier: Apache-2.0

import Foundation

/// A case of Linux's `usbtest` module, which tests USB controllers. `testusb`, a part of the bed,
/// runs a case against a device.
public struct USBTestCase: Sendable, CustomStringConvertible {
    /// The number of the case in `usbtest`.
    public let number: Int
    /// A description of the case.
    public let summary: String
    /// Iterations (`-c`), bytes (`-s`), variation of their number (`-v`), and queue depth (`-g`).
    let options: String

    public var description: String { "case \(number) (\(summary))" }

    private init(_ number: Int, _ summary: String, _ options: String) {
        self.number = number
        self.summary = summary
        self.options = options
    }

    /// All cases, with iterations for about one second on an emulated processor.
    public static let all = [
        USBTestCase(0, "nothing", "-c 1"),
        USBTestCase(1, "bulk OUT", "-c 100 -s 16384"),
        USBTestCase(2, "bulk IN", "-c 100 -s 16384"),
        USBTestCase(3, "bulk OUT of each length", "-c 200 -s 4096 -v 421"),
        USBTestCase(4, "bulk IN of each length", "-c 200 -s 4096 -v 421"),
        USBTestCase(5, "bulk OUT from scattered memory", "-c 50 -s 1024 -g 32"),
        USBTestCase(6, "bulk IN to scattered memory", "-c 50 -s 1024 -g 32"),
        USBTestCase(7, "bulk OUT from odd segments of memory", "-c 50 -s 2048 -v 421 -g 32"),
        USBTestCase(8, "bulk IN to odd segments of memory", "-c 50 -s 2048 -v 421 -g 32"),
        USBTestCase(9, "requests of USB's chapter 9", "-c 30"),
        USBTestCase(10, "queued control transfers, some stalled", "-c 30 -g 48"),
        USBTestCase(11, "unlink bulk IN", "-c 20 -s 8192"),
        USBTestCase(12, "unlink bulk OUT", "-c 20 -s 8192"),
        USBTestCase(13, "set and clear halts", "-c 20"),
        USBTestCase(14, "control OUT, read back", "-c 100 -s 1024 -v 31"),
        USBTestCase(15, "isochronous OUT", "-c 10 -s 3072 -g 8"),
        USBTestCase(16, "isochronous IN", "-c 10 -s 3072 -g 8"),
        USBTestCase(17, "bulk OUT at an odd address", "-c 50 -s 4096"),
        USBTestCase(18, "bulk IN at an odd address", "-c 50 -s 4096"),
        USBTestCase(19, "bulk OUT at an odd address, mapped ahead", "-c 50 -s 4096"),
        USBTestCase(20, "bulk IN at an odd address, mapped ahead", "-c 50 -s 4096"),
        USBTestCase(21, "control OUT at an odd address", "-c 100 -s 1024 -v 31"),
        USBTestCase(22, "isochronous OUT at an odd address", "-c 10 -s 3072 -g 8"),
        USBTestCase(23, "isochronous IN at an odd address", "-c 10 -s 3072 -g 8"),
        USBTestCase(24, "unlink from the middle of a queue", "-c 20 -s 8192 -g 16"),
        USBTestCase(25, "interrupt OUT", "-c 50 -s 1024"),
        USBTestCase(26, "interrupt IN", "-c 50 -s 1024"),
        USBTestCase(27, "queued bulk OUT", "-c 20 -s 32768 -g 32"),
        USBTestCase(28, "queued bulk IN", "-c 20 -s 32768 -g 32"),
        USBTestCase(29, "clear data toggles between transfers", "-c 20"),
    ]

    /// The case with a number from 0 to 29.
    public static func number(_ number: Int) -> USBTestCase { all[number] }

    /// The outcome of a case.
    public enum Outcome: Equatable, Sendable {
        case passed
        /// `usbtest` did not run it: the device lacks an endpoint, or the case an option.
        case skipped
        /// The case failed with this `errno`.
        case failed(Int32)
    }
}

/// A device bound to `usbtest`.
public struct USBTestDevice: Sendable {
    /// The kernel's name of the device.
    public let name: String
    /// The speed in Mb/s as the kernel reports it.
    public let speed: String
    /// The serial number.
    public let serial: String
    /// The device node, which changes with each attach.
    public let path: String
}

extension Shell {
    /// Loads `usbtest` and waits until it is bound to `count` devices.
    ///
    /// - Parameter setting: the alternate setting to use; in setting 1 the test device has
    ///   endpoints of each type. With `nil`, `usbtest` uses the first setting with endpoints.
    public func usbTestDevices(count: Int, setting: Int? = 1) throws -> [USBTestDevice] {
        try run("modprobe usbtest" + (setting.map { " alt=\($0)" } ?? ""))
        let bound = "/sys/bus/usb/drivers/usbtest/*:*"
        try wait(until: "[[ $(ls -d \(bound) 2>/dev/null | wc -l) == \(count) ]]")
        return try run(
            """
            for interface in \(bound); do
                cd $(readlink -f $interface)/..
                echo "${PWD##*/} $(<speed) $(<busnum) $(<devnum) $(<serial)"
            done
            """
        ).split(separator: "\n").map { line in
            let words = line.split(separator: " ", maxSplits: 4).map(String.init)
            guard words.count == 5, let bus = Int(words[2]), let device = Int(words[3]) else {
                throw VMError("not a device: \(line)")
            }
            return USBTestDevice(
                name: words[0], speed: words[1], serial: words[4],
                path: USBAddress(bus: bus, device: device).path)
        }
    }

    /// Runs a case.
    public func run(
        _ test: USBTestCase, on device: USBTestDevice
    ) throws -> USBTestCase.Outcome {
        let lines = try testusb("-t \(test.number) \(test.options)", device, "\(test)")
        return try outcome(of: test, on: device, lines)
    }

    /// Runs all cases with one call of `testusb`, for guests in which programs start slowly.
    ///
    /// - Parameter options: the options of every case. Lengths and their variation should be
    ///   multiples of the packet size, as some devices send no short packets.
    public func runAll(
        on device: USBTestDevice, options: String
    ) throws -> [(test: USBTestCase, outcome: USBTestCase.Outcome)] {
        let lines = try testusb(options, device, "all cases")
        return try USBTestCase.all.map { ($0, try outcome(of: $0, on: device, lines)) }
    }

    private func testusb(
        _ options: String, _ device: USBTestDevice, _ subject: String
    ) throws -> [Substring] {
        let result: CommandResult
        do {
            result = try execute(
                "/usr/lib/bed/testusb -D \(device.path) \(options)", timeout: .seconds(180))
        } catch let error as GuestNotResponding {
            throw error
        } catch {
            throw VMError(
                "\(subject) at \(device.speed) Mb/s: \(error)",
                detail: "the end of its kernel log:\n\(logTail)")
        }
        // testusb names the device, then prints one line per case that was run.
        let lines = result.output.split(separator: "\n")
        guard result.status == 0, lines.contains(where: { $0.contains("speed\t\(device.path)") })
        else { throw VMError("\(subject) at \(device.speed) Mb/s: \(result.output)") }
        return lines
    }

    private func outcome(
        of test: USBTestCase, on device: USBTestDevice, _ lines: [Substring]
    ) throws -> USBTestCase.Outcome {
        let prefix = "\(device.path) test \(test.number)"
        if lines.contains(where: { $0.hasPrefix("\(prefix), ") }) { return .passed }
        guard let line = lines.first(where: { $0.hasPrefix("\(prefix) ") }) else { return .skipped }
        guard let match = line.firstMatch(of: #/ --> (\d+) /#), let code = Int32(match.1) else {
            throw VMError("\(test) at \(device.speed) Mb/s: \(line)")
        }
        return .failed(code)
    }

    /// The end of the kernel log, without the repeated message about a transfer that ended before
    /// it could be unlinked, which is not an error.
    public var usbTestLog: String {
        (try? run("dmesg --notime | grep -v 'unlink retry' | tail -n 25")) ?? logTail
    }
}
