// SPDX-License-Identifier: Apache-2.0

import Foundation

/// A running Linux system that executes shell commands.
public protocol Shell: AnyObject {
    /// Runs a shell command to its end and returns its status and output.
    func execute(_ command: String, timeout: Duration) throws -> CommandResult
    /// The end of its kernel log, for the details of an error.
    var logTail: String { get }
}

extension Shell {
    /// Runs a shell command that must succeed, and returns its output.
    @discardableResult
    public func run(_ command: String, timeout: Duration = .seconds(180)) throws -> String {
        let result: CommandResult
        do {
            result = try execute(command, timeout: timeout)
        } catch let error as GuestNotResponding {
            throw error
        } catch {
            throw VMError("\(error)", detail: "the end of its kernel log:\n\(logTail)")
        }
        guard result.status == 0 else {
            throw VMError(
                "status \(result.status) from: \(command)",
                detail: "\(result.output)\nthe end of the kernel log:\n\(logTail)")
        }
        return result.output
    }

    /// Waits until a shell condition holds.
    public func wait(until condition: String, within limit: Duration = .seconds(120)) throws {
        // The guest's own limit is shorter, so that its answer arrives first.
        let seconds = limit.components.seconds
        // A read of a pipe without a writer waits like `sleep`, but starts no process, which is
        // slow in a guest of a guest.
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
                "timeout after \(limit): \(condition)",
                detail: "the end of the kernel log:\n\(logTail)")
        }
    }

    /// Waits for the USB disk, and returns its device file.
    ///
    /// The file exists before the kernel has read the partition table, and the kernel logs errors
    /// if the disk is detached by then, so this waits for the kernel's message that the disk is
    /// attached.
    public func disk(within limit: Duration = .seconds(120)) throws -> String {
        let isAttached = "[[ $(dmesg | grep -F '[sda]' | tail -n 1) == *Attached* ]]"
        try wait(until: "[[ -b /dev/sda ]] && \(isAttached)", within: limit)
        return "/dev/sda"
    }

    /// Waits for the disk of a driver such as `uas`, and returns its device file.
    ///
    /// The condition starts no process, which is slow in a guest of a guest.
    public func disk(under driver: String) throws -> String {
        let find = "disk=(/sys/bus/usb/drivers/\(driver)/*:*/host*/target*/*/block/sd*)"
        try wait(until: "{ \(find); [[ -b /dev/${disk##*/} ]]; }")
        let name = try run("\(find); echo ${disk##*/}")
        try wait(until: "[[ $(dmesg | grep -F '[\(name)]' | tail -n 1) == *Attached* ]]")
        return "/dev/\(name)"
    }

    /// The SHA-256 of a file or device, or of its first `mebibytes`, read from the disk after the
    /// guest has dropped its caches.
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

    /// Lines of the kernel log with an error or a warning about USB or the disk.
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
