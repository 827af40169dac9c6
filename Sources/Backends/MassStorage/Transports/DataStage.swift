// SPDX-License-Identifier: Apache-2.0

/// What a command means to move between host and device.
enum DataStage: Equatable {
    case none
    /// At least one byte.
    case send(Int)
    /// At least one byte.
    case receive(Int)

    /// What an action of the logical unit moves.
    init(_ action: LogicalUnit.Action) {
        switch action {
        case .good, .check, .perform: self = .none
        case .reply(let bytes): self = bytes.isEmpty ? .none : .send(bytes.count)
        case .read(let extent): self = .send(extent.byteCount)
        case .write(let extent, _), .compare(let extent): self = .receive(extent.byteCount)
        case .receiveParameters(let count): self = .receive(count)
        }
    }
}
