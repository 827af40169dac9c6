// SPDX-License-Identifier: Apache-2.0

import Glibc
import Platform
import SystemPackage
import Testing

@Suite("descriptors")
struct DescriptorTests {
    let pipe: Pipe

    init() throws { pipe = try Pipe() }

    @Test("a descriptor is closed when its owner goes away")
    func closes() throws {
        do {
            let owner = pipe.takeWriteEnd()
            #expect(try !pipe.isWriteEndClosed())
            _ = consume owner
        }
        #expect(try pipe.isWriteEndClosed())
    }

    @Test("a descriptor that is released stays open")
    func releases() throws {
        guard let owner = pipe.takeWriteEnd() else { return }
        let number = owner.release()
        #expect(try !pipe.isWriteEndClosed())
        _ = close(number)
        #expect(try pipe.isWriteEndClosed())
    }

    @Test("a duplicate is open on its own, and not inherited")
    func duplicates() throws {
        guard let original = pipe.takeWriteEnd() else { return }
        let copy = try original.duplicate()
        _ = consume original
        #expect(try !pipe.isWriteEndClosed())
        #expect(fcntl(copy.rawValue, F_GETFD) & FD_CLOEXEC != 0)
        _ = consume copy
        #expect(try pipe.isWriteEndClosed())
    }

    @Test("a read of a non-blocking descriptor does not wait")
    func nonblocking() throws {
        try pipe.readEnd.setNonblocking()
        #expect(throws: Errno.wouldBlock) { try pipe.read(1) }
    }

    @Test("a system call that fails throws its errno, one that is interrupted is repeated")
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

    @Test("what is not taken from a list is closed with it")
    func list() throws {
        let pipes = [try Pipe(), try Pipe(), try Pipe()]
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
            #expect(try pipes.map { try $0.isWriteEndClosed() } == [true, false, true])
            _ = consume taken
        }
        #expect(try pipes[1].isWriteEndClosed())
    }
}
