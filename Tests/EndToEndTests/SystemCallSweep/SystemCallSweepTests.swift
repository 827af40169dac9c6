// SPDX-License-Identifier: Apache-2.0

import Foundation
import GuestKit
import Platform
import RemoteGuest
import Testing
import VFIOClient
import VMKit

/// System calls of the built program that fail one at a time while clients connect, use a stick,
/// attach devices and disconnect.
///
/// With every fault the program either refuses to start and says why, or serves this client or one
/// of the next two. It does not crash, hang, spin or leak descriptors, and data that a guest has
/// flushed is in the file.
///
/// `SYSTEM_CALL_SWEEP=all` makes each call fail with each error. With the description of a fault,
/// only that fault runs; without the variable a sample runs.
@Suite(
    .enabled(
        if: TracedServer.isPossible && !Server.isSanitized,
        "it needs strace, and a machine that lets programs be traced"))
struct SystemCallSweepTests {
    /// A system call with the errors it has in practice.
    struct Sweep: Sendable, CustomTestStringConvertible {
        let call: String
        let errors: [String]
        /// A text that the arguments of the call contain; empty for all calls of the name.
        var having = ""

        var testDescription: String { call }
    }

    private static let allSweeps = [
        Sweep(call: "accept4", errors: ["EMFILE", "ECONNABORTED", "EINTR", "ENOMEM"]),
        Sweep(call: "bind", errors: ["ENOSPC", "EACCES"]),
        Sweep(call: "clone3", errors: ["EAGAIN"]),
        Sweep(call: "epoll_create1", errors: ["EMFILE"]),
        Sweep(call: "epoll_ctl", errors: ["ENOMEM", "ENOSPC"]),
        Sweep(call: "epoll_pwait2", errors: ["EINTR"]),
        Sweep(call: "epoll_wait", errors: ["EINTR"]),
        Sweep(call: "eventfd2", errors: ["EMFILE", "ENOMEM"]),
        Sweep(call: "fallocate", errors: ["ENOSPC", "EOPNOTSUPP", "EINTR", "EIO"]),
        Sweep(call: "fcntl", errors: ["EMFILE", "EINVAL"]),
        Sweep(call: "fdatasync", errors: ["EIO", "ENOSPC", "EINTR"]),
        Sweep(call: "flock", errors: ["ENOLCK", "EINTR"]),
        Sweep(call: "fstatfs", errors: ["EINTR", "EIO"]),
        Sweep(call: "listen", errors: ["EADDRINUSE"]),
        // Only mappings of the program: a failure of the allocator's ends every program.
        Sweep(call: "mmap", errors: ["ENOMEM"], having: "MAP_SHARED"),
        Sweep(call: "mmap", errors: ["ENOMEM", "EAGAIN"], having: "MAP_STACK"),
        Sweep(call: "newfstatat", errors: ["ENOMEM", "EIO"]),
        Sweep(call: "openat", errors: ["EMFILE", "ENOMEM", "EINTR"]),
        Sweep(call: "preadv2", errors: ["EIO", "EAGAIN", "EINTR", "EOPNOTSUPP"]),
        Sweep(call: "pwritev2", errors: ["EIO", "ENOSPC", "EAGAIN", "EINTR", "EOPNOTSUPP"]),
        Sweep(call: "read", errors: ["EINTR", "EAGAIN"]),
        Sweep(call: "readlink", errors: ["ENOMEM"]),
        Sweep(call: "recvmsg", errors: ["EINTR", "EAGAIN", "ECONNRESET", "ENOMEM"]),
        Sweep(call: "sendmsg", errors: ["EINTR", "EAGAIN", "ENOBUFS", "EPIPE", "ECONNRESET"]),
        Sweep(call: "signalfd4", errors: ["EMFILE"]),
        Sweep(call: "socket", errors: ["EMFILE", "ENOBUFS"]),
        Sweep(call: "write", errors: ["EINTR", "ENOSPC"]),
    ]

    private static let request = ProcessInfo.processInfo.environment["SYSTEM_CALL_SWEEP"]
    private static var isThorough: Bool { request == "all" }

    private static let sweeps = request == nil || isThorough ? allSweeps : []

    @Test(.enabled(if: !sweeps.isEmpty), arguments: sweeps)
    func `a failing system call does no more than fail a request`(sweep: Sweep) throws {
        let scene = try SweptScene()
        // The program begins with the event loop; the calls before it are the loader's.
        let calls = try scene.rehearse([sweep.call, "epoll_create1", "exit_group"])
        guard let begin = calls.firstIndex(where: { $0.name == "epoll_create1" }) else {
            Issue.record("the program made no event loop")
            return
        }
        let numbers = Set(
            calls[begin...].lazy
                .filter { $0.name == sweep.call }
                .filter { sweep.having.isEmpty || $0.text.contains(sweep.having) }
                .map(\.number)
        ).sorted()
        for (index, number) in Self.isThorough ? Array(numbers.enumerated()) : sample(numbers) {
            let errors =
                Self.isThorough
                ? sweep.errors : [sweep.errors[index % sweep.errors.count]]
            for error in errors {
                let fault = CallFault(call: sweep.call, error: error, number: number)
                do { try scene.play(fault) } catch { Issue.record("\(fault): \(error)") }
            }
        }
        if !numbers.isEmpty, !scene.hasMetFault { Issue.record("none of its calls failed") }
    }

    @Test(.enabled(if: request != nil && !isThorough))
    func `the fault in SYSTEM_CALL_SWEEP does no more than fail a request`() throws {
        let fault = try #require(CallFault(Self.request ?? ""))
        let scene = try SweptScene()
        _ = try scene.rehearse([fault.call, "exit_group"])
        try scene.play(fault)
        #expect(scene.hasMetFault)
    }

    /// All of up to 16 numbers; of more the first, the last and some in between.
    private func sample(_ numbers: [Int]) -> [(offset: Int, element: Int)] {
        guard numbers.count > 16 else { return Array(numbers.enumerated()) }
        let wanted = 6
        return (0..<wanted).map { index in
            (index, numbers[index * (numbers.count - 1) / (wanted - 1)])
        }
    }
}
