// SPDX-License-Identifier: Apache-2.0

import Glibc
import Platform

enum SocketPair {
    /// Puts the numbers of two connected sockets into an array of two.
    static func make(_ numbers: inout [CInt]) throws {
        _ = try systemCall {
            socketpair(AF_UNIX, CInt(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0, &numbers)
        }
    }
}
