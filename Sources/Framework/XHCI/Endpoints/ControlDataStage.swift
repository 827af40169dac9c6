// SPDX-License-Identifier: Apache-2.0

internal import USB

/// A control request whose Data Stage comes in pieces, each queued when the one before has completed
/// (xHCI 4.11.2.2), as FreeBSD did before 2020 with more than 1024 bytes.
///
/// A device is always given a whole request, so the data stays here in between: data of the device is
/// copied to the guest piece by piece, and data of the guest is collected until the Status Stage.
struct ControlDataStage {
    let setup: SetupPacket
    /// wLength bytes.
    private let data: MemoryLease
    /// Bytes of the pieces that have completed.
    private var moved = 0
    /// How the device has completed an IN request.
    private var result = TransferDescriptor.Outcome.completed(transferred: 0)

    /// - Returns: `nil` if there is no staging memory for it.
    init?(_ setup: SetupPacket, _ budget: StagingBudget) {
        guard let memory = StagingMemory(count: Int(setup.length), of: budget) else { return nil }
        self.setup = setup
        data = MemoryLease()
        unsafe data.replace(withStaged: memory.bytes, keeping: memory)
    }

    /// The data that has not moved yet.
    var remainingData: TransferBuffer { data.buffer.slice(from: moved, count: remaining) }

    /// The bytes of wLength that have not moved yet.
    var remaining: Int { Int(setup.length) - moved }

    /// Whether the device is given the request with a stage: a device sends its data in the Setup
    /// Stage, and has received all data in the Status Stage.
    func involvesDevice(_ stages: ControlStages?) -> Bool {
        stages == (setup.direction == .in ? .setup : .status)
    }

    /// The data for the device: room for wLength bytes, or the bytes that were collected.
    var buffer: TransferBuffer {
        let count = setup.direction == .in ? Int(setup.length) : moved
        return data.buffer.slice(from: 0, count: count)
    }

    /// Records how the device has completed the request.
    mutating func record(_ outcome: TransferDescriptor.Outcome) { result = outcome }

    /// The outcome of a piece of `count` bytes: an error of the device is reported where its data ends.
    func outcome(ofBytes count: Int) -> TransferDescriptor.Outcome {
        guard setup.direction == .in else { return .completed(transferred: count) }
        switch result {
        case .completed(let sent): return .completed(transferred: min(sent - moved, count))
        case .cancelled(let sent): return .cancelled(transferred: min(sent - moved, count))
        case .failed(let code, let sent, _):
            let rest = sent - moved
            // The Status Stage has no bytes, and is the last that can report it.
            return rest < count || count == 0
                ? .failed(code, transferred: rest) : .completed(transferred: count)
        }
    }

    /// Advances past a piece of `count` bytes.
    mutating func advance(_ count: Int) { moved += count }
}
