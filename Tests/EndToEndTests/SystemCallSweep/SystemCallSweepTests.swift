// SPDX-License-Identifier: Apache-2.0

import Foundation
import GuestKit
import Platform
import RemoteGuest
import Testing
import VFIOClient
import VMKit

/// The first system call of a kind fails, then the second, … while clients come, use a stick, ask for
/// devices and go.
///
/// Whatever fails, the program refuses to start and says why, or it serves this client or the next; it
/// does not crash, hang or spin, keeps no descriptor, and what a guest was told to be on the disk is
/// there. `SYSTEM_CALL_SWEEP=all` makes each call fail with each error, one that is named in a failure
/// makes it fail again; without it, a few of each are tried.
@Suite(
    .enabled(
        if: TracedServer.isPossible && !Server.isSanitized,
        "it needs strace, and a machine that lets programs be traced"))
struct SystemCallSweepTests {
    /// A system call and the errors that it has in practice.
    struct Sweep: Sendable, CustomTestStringConvertible {
        let call: String
        let errors: [String]
        /// What the call must have among its arguments, if not all of its kind are meant.
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
        // The program's own; those of the allocator end every program.
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
    func `no failing system call is more than a failure`(sweep: Sweep) throws {
        let scene = try SweptScene()
        // `main` has begun with the event loop; before it are the loader's calls.
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
        for (place, number) in Self.isThorough ? Array(numbers.enumerated()) : sample(numbers) {
            let errors =
                Self.isThorough
                ? sweep.errors : [sweep.errors[place % sweep.errors.count]]
            for error in errors {
                let fault = CallFault(call: sweep.call, error: error, number: number)
                do { try scene.play(fault) } catch { Issue.record("\(fault): \(error)") }
            }
        }
        if !numbers.isEmpty, !scene.hasMetFault { Issue.record("none of its calls failed") }
    }

    @Test(.enabled(if: request != nil && !isThorough))
    func `the system call that was asked for fails`() throws {
        let fault = try #require(CallFault(Self.request ?? ""))
        let scene = try SweptScene()
        _ = try scene.rehearse([fault.call, "exit_group"])
        try scene.play(fault)
        #expect(scene.hasMetFault)
    }

    /// All of a few; of many the first, the last, and some between them.
    private func sample(_ numbers: [Int]) -> [(offset: Int, element: Int)] {
        guard numbers.count > 16 else { return Array(numbers.enumerated()) }
        let wanted = 6
        return (0..<wanted).map { place in
            (place, numbers[place * (numbers.count - 1) / (wanted - 1)])
        }
    }
}
