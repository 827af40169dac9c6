// SPDX-License-Identifier: Apache-2.0

internal import USB

/// A control request whose Data Stage comes in pieces, each queued when the last has ended
/// (xHCI 4.11.2.2), as FreeBSD did before 2020 with more than 1024 bytes.
///
/// A device is only ever asked for a whole request, so the data stay here in between: what it gives
/// is handed to the guest piece by piece, and what the guest gives is gathered until the Status Stage.
struct ControlDataStage {
    let setup: SetupPacket
    /// Room for all of wLength.
    private let data: OwnedBytes
    /// Bytes of the pieces that have ended.
    private var moved = 0
    /// How the device has answered an IN request.
    private var answer = TransferDescriptor.Outcome.completed(transferred: 0)

    /// - Returns: `nil` if there is no memory for it.
    init?(_ setup: SetupPacket, _ budget: BounceBudget) {
        let count = Int(setup.length)
        guard budget.allows(count) else { return nil }
        self.setup = setup
        data = OwnedBytes(count: count, of: budget)
    }

    /// Where the data of the next piece are.
    var piece: BounceBuffer { BounceBuffer(data, from: moved) }

    /// Bytes that wLength leaves for further pieces.
    var left: Int { Int(setup.length) - moved }

    /// The Setup Stage is where a device gives its data, the Status Stage where it has taken them.
    func concernsDevice(_ stages: ControlStages?) -> Bool {
        stages == (setup.direction == .in ? .setup : .status)
    }

    /// The data for the device: room for all that it may give, or what was gathered.
    var buffer: TransferBuffer {
        let count = setup.direction == .in ? Int(setup.length) : moved
        return data.buffer.slice(from: 0, count: count)
    }

    /// Notes how the device has answered.
    mutating func record(_ outcome: TransferDescriptor.Outcome) { answer = outcome }

    /// How a part ends that has room for so many bytes: an error of the device is told where its data
    /// end.
    func outcome(ofBytes count: Int) -> TransferDescriptor.Outcome {
        guard setup.direction == .in else { return .completed(transferred: count) }
        switch answer {
        case .completed(let given): return .completed(transferred: min(given - moved, count))
        case .cancelled(let given): return .cancelled(transferred: min(given - moved, count))
        case .failed(let code, let given, _):
            let rest = given - moved
            // The Status Stage has no bytes, and is the last that can tell.
            return rest < count || count == 0
                ? .failed(code, transferred: rest) : .completed(transferred: count)
        }
    }

    /// A piece has ended.
    mutating func advance(_ count: Int) { moved += count }
}
