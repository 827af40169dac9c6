// SPDX-License-Identifier: Apache-2.0

import Platform
import SystemPackage
import USB

@testable import HostUSB

/// A handle whose kernel is the test: it says what is taken and when things end.
final class ScriptedHandle: HostHandle {
    weak var observer: (any HostHandleObserver)?

    /// What was handed over and has not ended.
    private(set) var inFlight: [Transfer] = []
    private(set) var cancelled: [UInt64] = []
    private(set) var operations: [DeviceOperation] = []
    private var completions: [(DeviceOperation.Outcome) -> Void] = []
    /// What the next submissions are answered with; without it they start.
    var answers: [HostSubmission] = []

    /// Transfers of more bytes find no memory.
    var memory = Int.max

    func submit(_ transfer: Transfer) -> HostSubmission {
        if transfer.buffer.count > memory { return .noMemory }
        let answer = answers.isEmpty ? .started : answers.removeFirst()
        if answer == .started { inFlight.append(transfer) }
        return answer
    }

    func cancel(_ id: Transfer.ID) { cancelled.append(id.rawValue) }

    private(set) var reaps = 0
    func reap() { reaps += 1 }

    func perform(
        _ operation: DeviceOperation, then completion: @escaping (DeviceOperation.Outcome) -> Void
    ) {
        operations.append(operation)
        completions.append(completion)
    }

    var inFlightIDs: [UInt64] { inFlight.map(\.id.rawValue) }

    /// Ends a transfer as the kernel would.
    func end(_ id: UInt64, _ status: Transfer.Status = .completed, transferred: Int = 0) {
        guard let index = inFlight.firstIndex(where: { $0.id.rawValue == id }) else { return }
        let transfer = inFlight.remove(at: index)
        observer?.transferEnded(
            transfer, with: transfer.completion(status, transferred: transferred))
    }

    /// Ends the oldest operation that is under way.
    func endOperation(_ result: DeviceOperation.Outcome.Result, warnings: [String] = []) {
        completions.removeFirst()(.init(result: result, warnings: warnings))
    }
}

/// A port that writes down what it is told.
final class RecordingPort: USBPort {
    private(set) var completions: [Transfer.Completion] = []
    private(set) var disconnections = 0

    func complete(_ completion: Transfer.Completion) { completions.append(completion) }
    func disconnect() { disconnections += 1 }
    func wake() {}

    /// What came since the last call, as text that reads well in an expectation.
    func take() -> [String] {
        defer { completions = [] }
        return completions.map { "\($0.id.rawValue) \($0.status) \($0.transferred)" }
    }
}

/// A loop whose clock is a number and whose timers run when it is moved.
final class ManualLoop: EventLoop {
    /// How many descriptors it has watched, and how many it would.
    private(set) var watched = 0
    var limit = Int.max

    /// How far the clock goes by itself whenever somebody looks at it.
    var tick = Duration.zero
    private var time = Duration.zero
    var now: Duration {
        time += tick
        return time
    }
    private var timers: [(id: Int, deadline: Duration, body: () -> Void)] = []
    private var nextTimer = 0

    func watch(
        _ descriptor: borrowing OwnedDescriptor, for events: Readiness,
        _ body: @escaping (Readiness) -> Void
    ) throws(Errno) -> Watch {
        guard watched < limit else { throw .noSpace }
        watched += 1
        return Watch {}
    }

    func schedule(at deadline: Duration, _ body: @escaping () -> Void) -> Watch {
        nextTimer += 1
        let id = nextTimer
        timers.append((id, deadline, body))
        return Watch { [weak self] in self?.timers.removeAll { $0.id == id } }
    }

    func advance(by step: Duration) {
        let end = time + step
        while let next = timers.filter({ $0.deadline <= end }).min(by: { $0.deadline < $1.deadline }
        ) {
            timers.removeAll { $0.id == next.id }
            time = max(time, next.deadline)
            next.body()
        }
        time = end
    }
}

/// Memory that stands for a guest's.
final class Bytes {
    let raw: UnsafeMutableRawBufferPointer

    init(_ content: [UInt8]) {
        raw = .allocate(byteCount: max(content.count, 1), alignment: 16)
        raw.copyBytes(from: content)
        count = content.count
    }

    let count: Int
    deinit { raw.deallocate() }

    var content: [UInt8] { Array(raw[..<count]) }

    /// The bytes in one segment.
    var buffer: TransferBuffer {
        let lease = MemoryLease()
        lease.append(.init(rebasing: raw[..<count]), keeping: self)
        return lease.buffer
    }

    /// The bytes of several in as many segments.
    static func buffer(_ parts: [Bytes]) -> TransferBuffer {
        let lease = MemoryLease()
        for part in parts { lease.append(.init(rebasing: part.raw[..<part.count]), keeping: part) }
        return lease.buffer
    }
}

extension SetupPacket {
    static let getDeviceDescriptor = SetupPacket(
        requestType: 0x80, request: 6, value: 0x0100, index: 0, length: 18)
    static func setConfiguration(_ value: UInt16) -> SetupPacket {
        SetupPacket(requestType: 0, request: 9, value: value, index: 0, length: 0)
    }
    static func setInterface(_ number: UInt16, _ setting: UInt16) -> SetupPacket {
        SetupPacket(requestType: 1, request: 11, value: setting, index: number, length: 0)
    }
    static func clearHalt(_ endpoint: UInt16) -> SetupPacket {
        SetupPacket(requestType: 2, request: 1, value: 0, index: endpoint, length: 0)
    }
    static func setAddress(_ address: UInt16) -> SetupPacket {
        SetupPacket(requestType: 0, request: 5, value: address, index: 0, length: 0)
    }
}
