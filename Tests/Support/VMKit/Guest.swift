// SPDX-License-Identifier: Apache-2.0

import Foundation

/// A booted virtual machine on this host, controlled by shell commands. It is killed with its last
/// reference.
public final class Guest: Shell {
    private let vmm: ChildProcess
    private let agent: Agent
    private let consoleLog: String
    private let inbox: String
    /// QEMU's monitor.
    public let qmp: QMP
    /// The agents of guests in this guest, by the name of the port that leads to them.
    let innerAgents: [String: Agent]

    init(_ machine: Machine, bed: Bed, folder: String) throws {
        let site = Machine.Site(
            qemu: bed.qemu, accelerator: bed.accelerator, tree: bed.tree, folder: folder,
            logLevel: 7)
        consoleLog = "\(folder)/console.log"
        inbox = "\(folder)/inbox"
        var machine = machine
        machine.folders["inbox"] = inbox
        try FileManager.default.createDirectory(
            atPath: inbox, withIntermediateDirectories: true)
        let vmm = try ChildProcess(machine.arguments(at: site), output: "\(folder)/qemu.log")
        self.vmm = vmm
        /// QEMU waits for a connection at one port after the other; its monitor is available
        /// before.
        func agent(at port: String) throws -> Agent {
            try vmm.wait(for: "QEMU to wait at '\(port)'", within: .seconds(60)) {
                guard vmm.isRunning else { throw VMError("QEMU exited at its start") }
                let path = "unix:\(folder)/\(port),"
                return vmm.output.contains("waiting for connection on: disconnected:\(path)")
                    ? true : nil
            }
            return try Agent(path: "\(folder)/\(port)")
        }
        do {
            self.agent = try agent(at: "agent")
            innerAgents = try Dictionary(
                uniqueKeysWithValues: machine.ports.map { ($0, try agent(at: $0)) })
            qmp = try QMP(path: "\(folder)/qmp")
            try self.agent.waitUntilReady(before: Deadline(.seconds(300)))
        } catch {
            vmm.kill()
            throw VMError(
                "\(error)", detail: "\(vmm.output)\n\(Self.tail(of: "\(folder)/console.log"))")
        }
    }

    public var logTail: String { Self.tail(of: consoleLog) }

    /// The output of the kernel and of commands on /dev/ttyS0. It is available after the machine
    /// has ended.
    public var console: String {
        (try? String(contentsOfFile: consoleLog, encoding: .utf8)) ?? ""
    }

    public func execute(_ command: String, timeout: Duration) throws -> CommandResult {
        try agent.run(command, timeout: timeout)
    }

    /// Copies an image into a file in the guest's memory.
    public func receive(_ image: DiskImage, as path: String) throws {
        try FileManager.default.copyItem(atPath: image.path, toPath: "\(inbox)/file")
        try run("mv /mnt/inbox/file \(path)")
    }

    /// Reboots the guest from within, and waits until it has booted.
    public func reboot() throws {
        try run("setsid busybox reboot -f >/dev/null 2>&1 &")
        try agent.waitUntilReady(before: Deadline(.seconds(300)))
    }

    /// Powers the guest off from within, and waits for the exit of the VMM.
    public func shutDown() throws {
        try run("sync; setsid busybox poweroff -f >/dev/null 2>&1 &")
        try vmm.waitForExit(within: .seconds(60))
    }

    /// Kills the VMM.
    public func kill() { vmm.kill() }

    private static func tail(of log: String) -> String {
        ((try? String(contentsOfFile: log, encoding: .utf8)) ?? "").lastLines(25)
    }
}
