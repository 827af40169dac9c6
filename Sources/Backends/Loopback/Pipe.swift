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
        switch address.rawValue {
        case 0x00: self = .control
        case 0x81: self = .bulkIn
        case 0x01: self = .bulkOut
        case 0x82: self = .interruptIn
        case 0x02: self = .interruptOut
        case 0x83: self = .isoIn
        case 0x03: self = .isoOut
        default: return nil
        }
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
    /// Whether the fault rules were asked about it.
    var isJudged = false
    /// What is to go wrong with it.
    var fault: FaultRule.Action?
    /// Until when it is not answered.
    var hold: Hold?

    enum Hold {
        case forever
        case until(Duration)
        case queued(Int)
    }
}

/// The transfers that wait at one endpoint, in the order in which they came.
struct PipeState {
    var waiting: [PendingTransfer] = []
    /// Goes off when the first of them, or all, have waited long enough.
    var timer: Watch?
    /// The last transfer failed so that the host halts the endpoint, and it will take back what it has
    /// submitted behind that. Nothing is done for those until it had the time.
    var isPaused = false
}
