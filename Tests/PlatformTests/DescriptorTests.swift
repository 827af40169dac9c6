// SPDX-License-Identifier: Apache-2.0

import Glibc
import Platform
import SystemPackage
import TestKit
import Testing

@Suite("descriptors")
struct DescriptorTests {
    let pipe: TestPipe

    init() throws { pipe = try TestPipe() }

    @Test("a descriptor is closed when its owner is destroyed")
    func closes() throws {
        do {
            let owner = pipe.takeWriteEnd()
            #expect(try pipe.isWriteEndOpen())
            _ = consume owner
        }
        #expect(try pipe.isWriteEndClosed())
    }

    @Test("a released descriptor stays open")
    func releases() throws {
        guard let owner = pipe.takeWriteEnd() else { return }
        let number = owner.release()
        #expect(try pipe.isWriteEndOpen())
        _ = close(number)
        #expect(try pipe.isWriteEndClosed())
    }

    @Test("a duplicate stays open without the original, and is close-on-exec")
    func duplicates() throws {
        guard let original = pipe.takeWriteEnd() else { return }
        let copy = try original.duplicate()
        _ = consume original
        #expect(try pipe.isWriteEndOpen())
        #expect(fcntl(copy.rawValue, F_GETFD) & FD_CLOEXEC != 0)
        _ = consume copy
        #expect(try pipe.isWriteEndClosed())
    }

    @Test("a read of a non-blocking descriptor fails with EAGAIN")
    func nonblocking() throws {
        try pipe.readEnd.setNonblocking()
        #expect(throws: Errno.wouldBlock) { try pipe.read(1) }
    }

    @Test("a failed system call throws its errno, an interrupted one is repeated")
    func systemCalls() {
        #expect(throws: Errno.badFileDescriptor) { try systemCall { fcntl(-1, F_GETFD) } }
        var tries = 0
        let result = try? systemCall {
            tries += 1
            if tries < 3 {
                errno = EINTR
                return -1
            }
            return 7
        }
        #expect(result == 7 && tries == 3)
    }

    @Test("a descriptor list closes the descriptors that were not taken")
    func list() throws {
        let pipes = [try TestPipe(), try TestPipe(), try TestPipe()]
        do {
            var list = DescriptorList()
            for pipe in pipes {
                if let end = pipe.takeWriteEnd() { list.append(end) }
            }
            let isWhole = list.count == 3 && !list.isEmpty
            #expect(isWhole)
            let taken = list.take(1)
            let isTaken = taken != nil
            #expect(isTaken)
            let again = list.take(1) == nil
            let outside = list.take(3) == nil && list.take(-1) == nil
            #expect(again && outside)
            list.removeAll()
            let isEmpty = list.isEmpty
            #expect(isEmpty)
            #expect(try pipes[0].isWriteEndClosed() && pipes[2].isWriteEndClosed())
            #expect(try pipes[1].isWriteEndOpen())
            _ = consume taken
        }
        #expect(try pipes[1].isWriteEndClosed())
    }
}
