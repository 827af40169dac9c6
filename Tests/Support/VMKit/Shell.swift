// SPDX-License-Identifier: Apache-2.0

import Foundation

/// A running Linux that a test gives commands to.
public protocol Shell: AnyObject {
    /// Runs a shell command to its end, whatever its status.
    func execute(_ command: String, timeout: Duration) throws -> CommandResult
    /// What its kernel wrote, for the eyes of whoever looks into a failure.
    var logTail: String { get }
}

extension Shell {
    /// Runs a shell command that must succeed, and returns what it printed.
    @discardableResult
    public func run(_ command: String, timeout: Duration = .seconds(180)) throws -> String {
        let result: CommandResult
        do {
            result = try execute(command, timeout: timeout)
        } catch let error as GuestStandsStill {
            throw error
        } catch {
            throw VMError("\(error)", detail: "its kernel's last words:\n\(logTail)")
        }
        guard result.status == 0 else {
            throw VMError(
                "status \(result.status) from: \(command)",
                detail: "\(result.output)\nthe kernel's last words:\n\(logTail)")
        }
        return result.output
    }

    /// Waits until a shell condition holds.
    public func wait(until condition: String, within limit: Duration = .seconds(120)) throws {
        // A little longer than the guest itself waits, so that the guest's answer comes first.
        let seconds = limit.components.seconds
        // Nobody writes into the pipe, so reading waits as `sleep` does. That is a program, and in a
        // guest of a guest to start one costs more than the rest.
        let loop = """
            [[ -p /tmp/silence ]] || mkfifo /tmp/silence
            end=$((SECONDS + \(seconds)))
            until \(condition); do
                if ((SECONDS >= end)); then exit 1; fi
                read -rt 0.05 <>/tmp/silence || true
            done
            """
        guard try execute(loop, timeout: limit + .seconds(30)).status == 0 else {
            throw VMError(
                "waited \(limit) in vain until: \(condition)",
                detail: "the kernel's last words:\n\(logTail)")
        }
    }

    /// Waits for the USB disk, and returns its device file.
    ///
    /// The file is there before the kernel has looked for partitions. Who takes the disk away by
    /// then makes the kernel complain, so this waits for its word that it is done.
    public func disk(within limit: Duration = .seconds(120)) throws -> String {
        let isAttached = "[[ $(dmesg | grep -F '[sda]' | tail -n 1) == *Attached* ]]"
        try wait(until: "[[ -b /dev/sda ]] && \(isAttached)", within: limit)
        return "/dev/sda"
    }

    /// Waits for the disk that a driver, such as `uas`, has made of a USB device, and returns its
    /// device file.
    ///
    /// Programs take long to start in a guest of a guest, so the shell looks alone.
    public func disk(under driver: String) throws -> String {
        let find = "disk=(/sys/bus/usb/drivers/\(driver)/*:*/host*/target*/*/block/sd*)"
        try wait(until: "{ \(find); [[ -b /dev/${disk##*/} ]]; }")
        let name = try run("\(find); echo ${disk##*/}")
        try wait(until: "[[ $(dmesg | grep -F '[\(name)]' | tail -n 1) == *Attached* ]]")
        return "/dev/\(name)"
    }

    /// The SHA-256 of a file or device, or of its first `mebibytes`, as the disk has it: what the
    /// guest has cached of it is forgotten first.
    public func checksum(
        of path: String, mebibytes: Int? = nil, timeout: Duration = .seconds(300)
    ) throws -> String {
        let count = mebibytes.map { "count=\($0)" } ?? ""
        return try run(
            """
            set -o pipefail
            sync; echo 3 >/proc/sys/vm/drop_caches
            dd if=\(path) bs=1M \(count) status=none | sha256sum | cut -d' ' -f1
            """, timeout: timeout)
    }

    /// Lines of the kernel's log in which USB or the disk complains.
    public func complaints() throws -> [String] {
        let subject = #/xhci|usb|uas|scsi|\bsd\b|\bsd[a-z]\b|I/O/#.ignoresCase()
        let complaint =
            #/error|reset|time.?out|timed out|fail|abort|not respond|unable|warn|died|halted/#
            .ignoresCase()
        return try run("dmesg --notime").split(separator: "\n").map(String.init).filter {
            $0.contains(subject) && $0.contains(complaint)
        }
    }
}
