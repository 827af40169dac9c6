// SPDX-License-Identifier: Apache-2.0

import SystemPackage
import Testing
import USB

@testable import MassStorage

/// Transfers that are cancelled while the disk hangs and whose memory the guest reuses.
@Suite struct RevokedTransferTests {
    private let image = FakeImage(byteCount: 4 << 20)
    private let pattern = (0..<4 << 20).map { UInt8(truncatingIfNeeded: $0 / 512 &+ $0) }
    private let large = MassStorageLimits.chunkBytes * 2 + 4096

    init() {
        image.fill(at: 0, pattern)
        image.set { $0.nonblocking = .wouldBlock }
    }

    enum Transport: CaseIterable {
        case bulkOnly
        case uasWithStreams
        case uasWithoutStreams
    }

    /// The event that ends a transfer.
    enum Ending: CaseIterable {
        case cancel
        case endpointReset
        case portReset
        case configuration
        case detach
    }

    /// A host with a command in progress.
    private struct Command {
        let host: BulkOnlyHost
        let uas: UASHost?
        let tag: UInt16

        init(_ image: FakeImage, _ transport: Transport) throws {
            switch transport {
            case .bulkOnly: uas = nil
            case .uasWithStreams: uas = try UASHost(image, streams: 32)
            case .uasWithoutStreams: uas = try UASHost(image, streams: 0)
            }
            host = try uas?.host ?? BulkOnlyHost(image)
            tag = uas?.freshTag() ?? 1
        }

        /// Sends the command, up to its data stage.
        func begin(_ block: [UInt8], length: Int, _ direction: Direction) {
            guard let uas else {
                _ = host.submitOut(
                    host.wrapper(block, length: length, direction: direction, tag: UInt32(tag)))
                return
            }
            uas.request(UASHost.command(block, tag))
            if uas.streams == 0 {
                #expect(uas.answer(uas.status(tag), tag: tag) == .ready(direction))
            }
        }

        func data(in count: Int) -> Transfer.ID {
            uas?.data(in: count, tag) ?? host.submitIn(count)
        }

        func data(out bytes: [UInt8]) -> Transfer.ID {
            uas?.data(out: bytes, tag) ?? host.submitOut(bytes)
        }

        /// Submits a transfer for the status.
        func submitStatus() -> Transfer.ID { uas?.status(tag) ?? host.submitIn(13) }

        /// Whether the status is GOOD, or the CSW's status is passed.
        func isGood(_ status: Transfer.ID) -> Bool {
            if let uas { return uas.answer(status, tag: tag) == .good }
            return host.wait(status)?.status == .completed && host.bytes(status).last == 0
        }

        /// Ends the pending transfer.
        func end(_ ending: Ending, _ id: Transfer.ID) {
            switch ending {
            case .cancel: host.device.cancel(id)
            case .endpointReset:
                host.device.cancel(id)
                host.device.resetEndpoint(
                    uas == nil
                        ? MassStorageDescriptors.inEndpoint : MassStorageDescriptors.outEndpoint)
            case .portReset: host.device.reset()
            case .configuration: host.setConfiguration(1)
            case .detach: host.device.detached()
            }
        }

        /// Configures the device after an event that has reset it.
        func restart(after ending: Ending) {
            switch ending {
            case .cancel, .endpointReset: return
            case .portReset, .configuration: break
            case .detach: host.device.attach(to: host.port)
            }
            host.setConfiguration(1)
            uas?.choose()
        }

        func run(_ block: [UInt8], in count: Int) -> [UInt8] {
            uas?.run(block, in: count).1 ?? host.run(block, in: count).data
        }
    }

    private static func read(_ bytes: Int) -> [UInt8] { block(0x28, bytes) }
    private static func write(_ bytes: Int) -> [UInt8] { block(0x2a, bytes) }
    private static func block(_ code: UInt8, _ bytes: Int) -> [UInt8] {
        let count = bytes / 512
        return [code, 0, 0, 0, 0, 0, 0, UInt8(count >> 8), UInt8(count & 0xff), 0]
    }

    /// Compares bytes without the report of `==`, which takes minutes for megabytes.
    private func isEqual(_ bytes: [UInt8], _ expected: some Sequence<UInt8>) -> Bool {
        bytes.elementsEqual(expected)
    }

    // MARK: - Reads

    @Test(arguments: Transport.allCases, Ending.allCases)
    func `a read that hangs writes nothing into memory that the guest has reused`(
        transport: Transport, ending: Ending
    ) throws {
        let command = try Command(image, transport)
        let host = command.host
        image.shutGate()
        command.begin(Self.read(4096), length: 4096, .in)
        let data = command.data(in: 4096)
        #expect(!host.isDone(data))
        let before = host.port.order.count
        command.end(ending, data)
        if ending == .detach {
            #expect(host.port.order.count == before)
        } else {
            #expect(host.port.completions[data]?.status == .cancelled)
            #expect(host.port.completions[data]?.transferred == 0)
        }
        host.reuseMemory(of: data)
        image.openGate()
        host.waitUntilIdle()
        #expect(host.isMemoryIntact(of: data))
        command.restart(after: ending)
        if ending == .cancel || ending == .endpointReset {
            // The guest's ring resumes where it was stopped.
            let again = command.data(in: 4096)
            let status = command.submitStatus()
            #expect(command.isGood(status))
            #expect(isEqual(host.bytes(again), pattern[..<4096]))
        }
        #expect(isEqual(command.run(Self.read(8192), in: 8192), pattern[..<8192]))
        #expect(host.port.doubles.isEmpty)
    }

    @Test(arguments: Transport.allCases)
    func `a read is repeated for the next transfer while the disk hangs`(
        transport: Transport
    ) throws {
        let command = try Command(image, transport)
        let host = command.host
        image.shutGate()
        command.begin(Self.read(8192), length: 8192, .in)
        var data = command.data(in: 8192)
        for _ in 0..<3 {
            host.device.cancel(data)
            #expect(host.port.completions[data]?.status == .cancelled)
            host.reuseMemory(of: data)
            let next = command.data(in: 8192)
            #expect(!host.isDone(next))
            data = next
        }
        let status = command.submitStatus()
        image.openGate()
        #expect(command.isGood(status))
        #expect(isEqual(host.bytes(data), pattern[..<8192]))
        #expect(host.port.doubles.isEmpty)
    }

    @Test(arguments: Transport.allCases)
    func `a long read that is cancelled counts the chunks that were delivered`(
        transport: Transport
    ) throws {
        let command = try Command(image, transport)
        let host = command.host
        let chunk = UInt64(MassStorageLimits.chunkBytes)
        image.shutGate { if case .read(let offset, _) = $0 { offset >= chunk } else { false } }
        command.begin(Self.read(large), length: large, .in)
        let data = command.data(in: large)
        // The first chunk is delivered, the second hangs.
        while !host.arrived(data, MassStorageLimits.chunkBytes) { host.turn() }
        host.device.cancel(data)
        #expect(host.port.completions[data]?.transferred == MassStorageLimits.chunkBytes)
        let first = host.bytes(data)
        host.reuseMemory(of: data)
        let rest = command.data(in: large - first.count)
        image.openGate()
        let status = command.submitStatus()
        #expect(command.isGood(status))
        #expect(isEqual(first + host.bytes(rest), pattern[..<large]))
        #expect(host.isMemoryIntact(of: data))
    }

    @Test(arguments: Transport.allCases)
    func `a cancelled read counts the whole packets that were in the page cache`(
        transport: Transport
    ) throws {
        let command = try Command(image, transport)
        let host = command.host
        image.set { $0.nonblocking = .servedUpTo(1500) }
        image.shutGate { if case .read(1500, _) = $0 { true } else { false } }
        command.begin(Self.read(8192), length: 8192, .in)
        let data = command.data(in: 4096)
        host.device.cancel(data)
        let transferred = try #require(host.port.completions[data]?.transferred)
        #expect(transferred == 1024)
        let first = host.bytes(data)
        host.reuseMemory(of: data)
        let rest = command.data(in: 4096 - transferred)
        let last = command.data(in: 4096)
        image.openGate()
        let status = command.submitStatus()
        #expect(command.isGood(status))
        #expect(isEqual(first + host.bytes(rest) + host.bytes(last), pattern[..<8192]))
        #expect(host.isMemoryIntact(of: data))
    }

    @Test func `a UAS command is aborted while its read hangs`() throws {
        let command = try Command(image, .uasWithStreams)
        let host = command.host
        image.shutGate()
        command.begin(Self.read(4096), length: 4096, .in)
        let data = command.data(in: 4096)
        let done = command.uas?.status(30)
        command.uas?.request(UASHost.function(0x01, 30, of: command.tag))
        #expect(host.port.completions[data] != nil)
        #expect(done.map { host.isDone($0) } == true)
        host.reuseMemory(of: data)
        image.openGate()
        host.waitUntilIdle()
        #expect(host.isMemoryIntact(of: data))
        #expect(isEqual(command.run(Self.read(4096), in: 4096), pattern[..<4096]))
    }

    // MARK: - Writes

    @Test(arguments: Transport.allCases, Ending.allCases)
    func `a write that hangs writes the bytes of its submission, not of reused memory`(
        transport: Transport, ending: Ending
    ) throws {
        let command = try Command(image, transport)
        let host = command.host
        let bytes = [UInt8](repeating: 0x77, count: 4096)
        image.shutGate()
        command.begin(Self.write(4096), length: 4096, .out)
        let data = command.data(out: bytes)
        #expect(!host.isDone(data))
        command.end(ending, data)
        let isStopped = ending == .cancel || ending == .endpointReset
        if ending == .detach {
            #expect(!host.isDone(data))
        } else {
            #expect(host.port.completions[data]?.status == .cancelled)
            // The bytes have been copied, so they count as transferred.
            #expect(host.port.completions[data]?.transferred == (isStopped ? 4096 : 0))
        }
        host.reuseMemory(of: data)
        if isStopped {
            let status = command.submitStatus()
            #expect(!host.isDone(status))
            image.openGate()
            #expect(command.isGood(status))
        } else {
            image.openGate()
            host.waitUntilIdle()
        }
        #expect(isEqual(image.bytes(at: 0, count: 4096), bytes))
        command.restart(after: ending)
        #expect(isEqual(command.run(Self.read(4096), in: 4096), bytes))
        #expect(host.port.doubles.isEmpty)
    }

    @Test(arguments: Transport.allCases)
    func `a long write that is cancelled continues with the next transfer`(
        transport: Transport
    ) throws {
        let command = try Command(image, transport)
        let host = command.host
        let bytes = pattern[..<large].map { ~$0 }
        let chunk = UInt64(MassStorageLimits.chunkBytes)
        image.shutGate { if case .write(chunk, _, _) = $0 { true } else { false } }
        command.begin(Self.write(large), length: large, .out)
        let data = command.data(out: bytes)
        while !image.log.contains(where: { if case .write(0, _, _) = $0 { true } else { false } }) {
            host.turn()
        }
        host.turn()
        host.device.cancel(data)
        let taken = try #require(host.port.completions[data]?.transferred)
        #expect(taken >= MassStorageLimits.chunkBytes && taken < large)
        host.reuseMemory(of: data)
        let rest = command.data(out: Array(bytes[taken...]))
        let status = command.submitStatus()
        #expect(!host.isDone(rest))
        image.openGate()
        #expect(command.isGood(status))
        #expect(isEqual(image.bytes(at: 0, count: large), bytes))
    }

    @Test(arguments: Transport.allCases)
    func `a write error after the transfer was cancelled fails the command`(
        transport: Transport
    ) throws {
        let command = try Command(image, transport)
        let host = command.host
        image.shutGate()
        image.set { $0.fault = { if case .write = $0 { .noSpace } else { nil } } }
        command.begin(Self.write(4096), length: 4096, .out)
        let data = command.data(out: [UInt8](repeating: 1, count: 4096))
        host.device.cancel(data)
        #expect(host.port.completions[data]?.transferred == 4096)
        let status = command.submitStatus()
        image.openGate()
        if let uas = command.uas {
            #expect(
                uas.answer(status, tag: command.tag) == .checkCondition(key: 7, code: 0x2707))
        } else {
            #expect(!command.isGood(status))
            #expect(host.bytes(status) == [0x55, 0x53, 0x42, 0x53, 1, 0, 0, 0, 0, 16, 0, 0, 1])
            #expect(host.sense().code == 0x2707)
        }
    }

    @Test func `a flush is executed after a write whose transfer was cancelled`() throws {
        let command = try Command(image, .bulkOnly)
        let host = command.host
        image.shutGate()
        command.begin(Self.write(4096), length: 4096, .out)
        let data = command.data(out: [UInt8](repeating: 1, count: 4096))
        host.device.reset()
        #expect(host.isDone(data))
        host.setConfiguration(1)
        let flush = [0x35] + [UInt8](repeating: 0, count: 9)
        _ = host.submitOut(host.wrapper(flush, length: 0, direction: .out, tag: 9))
        let status = host.submitIn(13)
        #expect(!host.isDone(status))
        image.openGate()
        #expect(host.wait(status)?.status == .completed)
        #expect(image.log == [.write(0, 4096, durably: false), .flush])
    }

    @Test(arguments: Transport.allCases)
    func `VERIFY compares the bytes of its submission`(transport: Transport) throws {
        let command = try Command(image, transport)
        let host = command.host
        image.shutGate()
        command.begin([0x2f, 2, 0, 0, 0, 0, 0, 0, 8, 0], length: 4096, .out)
        let data = command.data(out: Array(pattern[..<4096]))
        host.device.cancel(data)
        #expect(host.port.completions[data]?.transferred == 4096)
        host.reuseMemory(of: data)
        let status = command.submitStatus()
        image.openGate()
        #expect(command.isGood(status))
    }

    // MARK: - Another medium

    @Test(arguments: Transport.allCases)
    func `removing the medium ends a long read after the current chunk`(
        transport: Transport
    ) throws {
        let command = try Command(image, transport)
        let host = command.host
        let next = FakeImage(byteCount: 1 << 20)
        image.shutGate { if case .read = $0 { true } else { false } }
        command.begin(Self.read(large), length: large, .in)
        let data = command.data(in: large)
        host.device.changeMedium(to: next, force: false) { #expect($0 == nil) }
        image.openGate()
        #expect(host.wait(data)?.transferred == MassStorageLimits.chunkBytes)
        if transport == .bulkOnly { host.clearHalt(MassStorageDescriptors.inEndpoint) }
        let status = command.submitStatus()
        #expect(!command.isGood(status))
        host.waitUntilIdle()
        #expect(next.log.isEmpty)
    }
}
