// SPDX-License-Identifier: Apache-2.0

internal import USB

/// The endpoints of the test device. Bulk endpoints have the same address in both configurations.
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

    /// Whether the endpoint has a Halt feature: bulk and interrupt endpoints (USB 2.0, 9.4.5).
    var canHalt: Bool { self != .control && !isIsochronous }
}
