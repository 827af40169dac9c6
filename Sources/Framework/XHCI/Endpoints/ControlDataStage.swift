// SPDX-License-Identifier: Apache-2.0

internal import USB

/// A control request whose Data Stage is queued in several TDs, each after the previous one has
/// completed (xHCI 4.11.2.2). FreeBSD before 2020 does so with more than 1024 bytes.
///
/// The request has parts: the Setup Stage with the first Data Stage TD, further Data Stage TDs, and
/// the Status Stage. A device gets the whole request, so its data is staged here: IN data is copied
/// to the guest part by part, and OUT data is collected until the Status Stage.
///
/// A device that has not completed the request in time loses its access to the data.
final class ControlDataStage {
    let setup: SetupPacket
    /// wLength bytes.
    private let memory: StagingMemory
    private let data = MemoryLease()
    /// Bytes of the parts that have completed.
    private var moved = 0
    /// The device's completion of an IN request.
    private var result = TransferDescriptor.Outcome.completed(transferred: 0)

    /// - Returns: `nil` if there is no staging memory for it.
    init?(_ setup: SetupPacket, _ budget: StagingBudget) {
        guard let memory = StagingMemory(count: Int(setup.length), of: budget) else { return nil }
        self.setup = setup
        self.memory = memory
        unsafe data.replace(withStaged: memory.bytes, keeping: memory)
    }

    deinit { data.end() }

    /// Ends all access of the device to the data, which stays.
    func revoke() {
        data.end()
        unsafe data.replace(withStaged: memory.bytes, keeping: memory)
    }

    /// The data that has not moved yet.
    var remainingData: TransferBuffer { data.buffer.slice(from: moved, count: remaining) }

    /// The bytes of wLength that have not moved yet.
    var remaining: Int { Int(setup.length) - moved }

    /// Whether a part submits the request to the device: the Setup Stage of an IN request, or the
    /// Status Stage of an OUT request, when all data has been collected.
    func involvesDevice(_ stages: ControlStages?) -> Bool {
        stages == (setup.direction == .in ? .setup : .status)
    }

    /// The buffer for the device: wLength bytes for IN, the collected bytes for OUT.
    var buffer: TransferBuffer {
        let count = setup.direction == .in ? Int(setup.length) : moved
        return data.buffer.slice(from: 0, count: count)
    }

    /// Records the device's completion of the request.
    func record(_ outcome: TransferDescriptor.Outcome) { result = outcome }

    /// The outcome of a part of `count` bytes. The part in which the device's data ends reports its
    /// error.
    func outcome(ofBytes count: Int) -> TransferDescriptor.Outcome {
        guard setup.direction == .in else { return .completed(transferred: count) }
        switch result {
        case .completed(let sent): return .completed(transferred: min(sent - moved, count))
        case .cancelled(let sent): return .cancelled(transferred: min(sent - moved, count))
        case .failed(let code, let sent, _):
            let unmoved = sent - moved
            // The Status Stage has no bytes, and is the last part that can report the error.
            return unmoved < count || count == 0
                ? .failed(code, transferred: unmoved) : .completed(transferred: count)
        }
    }

    /// Advances past a part of `count` bytes.
    func advance(_ count: Int) { moved += count }
}
