// SPDX-License-Identifier: Apache-2.0

/// The data stage that the device intends for a command: direction and length.
enum DataStage: Equatable {
    case none
    /// IN, at least one byte.
    case send(Int)
    /// OUT, at least one byte.
    case receive(Int)

    /// The data stage of an action of the logical unit.
    init(_ action: LogicalUnit.Action) {
        switch action {
        case .good, .checkCondition, .operation: self = .none
        case .reply(let bytes): self = bytes.isEmpty ? .none : .send(bytes.count)
        case .read(let extent): self = .send(extent.byteCount)
        case .write(let extent, _), .compare(let extent): self = .receive(extent.byteCount)
        case .receiveParameters(let count): self = .receive(count)
        }
    }
}
