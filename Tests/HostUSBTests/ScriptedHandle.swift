// SPDX-License-Identifier: Apache-2.0

import USB

@testable import HostUSB

/// A handle of a test that acts as the kernel: the test decides which transfers start and when they
/// end.
final class ScriptedHandle: HostHandle {
    weak var observer: (any HostHandleObserver)?

    /// Started transfers that have not ended.
    private(set) var inFlight: [Transfer] = []
    private(set) var cancelled: [UInt64] = []
    private(set) var operations: [DeviceOperation] = []
    private var completions: [(DeviceOperation.Outcome) -> Void] = []
    /// The results of the next submissions. Later transfers start.
    var results: [SubmissionResult] = []

    /// The largest transfer for which the kernel has memory, in bytes.
    var memory = Int.max

    func submit(_ transfer: Transfer) -> SubmissionResult {
        if transfer.buffer.count > memory { return .noMemory }
        let result = results.isEmpty ? .started : results.removeFirst()
        if result == .started { inFlight.append(transfer) }
        return result
    }

    func cancel(_ id: Transfer.ID) { cancelled.append(id.rawValue) }

    private(set) var reaps = 0
    func reap() { reaps += 1 }

    func run(
        _ operation: DeviceOperation, completion: @escaping (DeviceOperation.Outcome) -> Void
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

    /// Ends the oldest operation that runs.
    func endOperation(_ result: DeviceOperation.Outcome.Result, warnings: [String] = []) {
        completions.removeFirst()(.init(result: result, warnings: warnings))
    }
}

/// A port that records completions and disconnections.
final class RecordingPort: USBPort {
    private(set) var completions: [Transfer.Completion] = []
    private(set) var disconnections = 0

    func complete(_ completion: Transfer.Completion) { completions.append(completion) }
    func disconnect() { disconnections += 1 }
    func wake() {}

    /// The completions since the last call, as text.
    func take() -> [String] {
        defer { completions = [] }
        return completions.map { "\($0.id.rawValue) \($0.status) \($0.transferred)" }
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
