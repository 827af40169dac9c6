// SPDX-License-Identifier: Apache-2.0

internal import Platform
internal import USB

/// The endpoints of the device. Bulk endpoints have the same addresses in both configurations.
enum Pipe: Int, CaseIterable {
    case control
    case bulkIn
    case bulkOut
    case interruptIn
    case interruptOut
    case isoIn
    case isoOut

    var address: EndpointAddress {
        switch self {
        case .control: .control
        case .bulkIn: EndpointAddress(1, .in)
        case .bulkOut: EndpointAddress(1, .out)
        case .interruptIn: EndpointAddress(2, .in)
        case .interruptOut: EndpointAddress(2, .out)
        case .isoIn: EndpointAddress(3, .in)
        case .isoOut: EndpointAddress(3, .out)
        }
    }

    init?(_ address: EndpointAddress) {
        guard let pipe = Self.allCases.first(where: { $0.address == address }) else { return nil }
        self = pipe
    }

    var isBulk: Bool { self == .bulkIn || self == .bulkOut }
    var isIsochronous: Bool { self == .isoIn || self == .isoOut }
    var isIn: Bool { self != .control && address.direction == .in }
}

/// A transfer that the device has.
struct PendingTransfer {
    let transfer: Transfer
    /// Bytes moved until now.
    var moved = 0
}

/// The transfers that wait at one endpoint, in the order in which they came.
struct PipeState {
    var waiting: [PendingTransfer] = []
}
