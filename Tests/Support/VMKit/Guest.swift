// SPDX-License-Identifier: Apache-2.0

import Foundation

/// A virtual machine on this host, up and driven by commands. It dies with its last reference.
public final class Guest: Shell {
    private let vmm: ChildProcess
    private let agent: Agent
    private let consoleLog: String
    private let inbox: String
    /// QEMU's monitor.
    public let qmp: QMP
    /// The agents of machines inside this one, by the port that leads to them.
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
        /// QEMU says at which port it waits, one after the other. The monitor was there before.
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

    /// All that the kernel wrote to its console, and what commands wrote to /dev/ttyS0. It can be
    /// read after the machine has died.
    public var console: String {
        (try? String(contentsOfFile: consoleLog, encoding: .utf8)) ?? ""
    }

    public func execute(_ command: String, timeout: Duration) throws -> CommandResult {
        try agent.run(command, timeout: timeout)
    }

    /// Gives it a copy of an image's contents, as a file in its memory.
    public func receive(_ image: DiskImage, as path: String) throws {
        try FileManager.default.copyItem(atPath: image.path, toPath: "\(inbox)/file")
        try run("mv /mnt/inbox/file \(path)")
    }

    /// Reboots it, as its own user would, and waits until it is up again.
    public func reboot() throws {
        try run("setsid busybox reboot -f >/dev/null 2>&1 &")
        try agent.waitUntilReady(before: Deadline(.seconds(300)))
    }

    /// Switches it off in order, and waits until the VMM has gone.
    public func shutDown() throws {
        try run("sync; setsid busybox poweroff -f >/dev/null 2>&1 &")
        try vmm.waitForExit(within: .seconds(60))
    }

    /// Kills the VMM, as a crash would.
    public func kill() { vmm.kill() }

    private static func tail(of log: String) -> String {
        ((try? String(contentsOfFile: log, encoding: .utf8)) ?? "").lastLines(25)
    }
}
