// SPDX-License-Identifier: Apache-2.0

public import DMA

/// An event TRB (xHCI 6.4.2) as a driver reads it.
public struct GuestEvent: Hashable, Sendable {
    public let trb: GuestTRB
    /// The interrupter whose event ring held it.
    public let interrupter: Int

    public init(_ trb: GuestTRB, interrupter: Int) {
        self.trb = trb
        self.interrupter = interrupter
    }

    /// Completion Code (xHCI table 6-90).
    public struct Code: RawRepresentable, Hashable, Sendable {
        public let rawValue: UInt8
        public init(rawValue: UInt8) { self.rawValue = rawValue }
        public static let success = Code(rawValue: 1)
        public static let dataBufferError = Code(rawValue: 2)
        public static let babbleDetected = Code(rawValue: 3)
        public static let usbTransactionError = Code(rawValue: 4)
        public static let trbError = Code(rawValue: 5)
        public static let stall = Code(rawValue: 6)
        public static let resourceError = Code(rawValue: 7)
        public static let noSlotsAvailable = Code(rawValue: 9)
        public static let slotNotEnabled = Code(rawValue: 11)
        public static let endpointNotEnabled = Code(rawValue: 12)
        public static let shortPacket = Code(rawValue: 13)
        public static let ringUnderrun = Code(rawValue: 14)
        public static let ringOverrun = Code(rawValue: 15)
        public static let bandwidthOverrun = Code(rawValue: 18)
        public static let missedService = Code(rawValue: 23)
        public static let isochronousBufferOverrun = Code(rawValue: 31)
        public static let invalidStreamType = Code(rawValue: 10)
        public static let invalidStreamID = Code(rawValue: 34)
        public static let parameterError = Code(rawValue: 17)
        public static let contextStateError = Code(rawValue: 19)
        public static let eventRingFull = Code(rawValue: 21)
        public static let commandRingStopped = Code(rawValue: 24)
        public static let commandAborted = Code(rawValue: 25)
        public static let stopped = Code(rawValue: 26)
        public static let stoppedLengthInvalid = Code(rawValue: 27)
        public static let stoppedShortPacket = Code(rawValue: 28)
    }

    public var kind: GuestTRB.Kind { trb.kind }
    public var code: Code { Code(rawValue: UInt8(truncatingIfNeeded: trb.status >> 24)) }
    /// The address of the TRB that the event reports, or the value of an Event Data TRB.
    public var parameter: UInt64 { trb.parameter }
    public var pointer: GuestAddress { GuestAddress(trb.parameter) }
    /// TRB Transfer Length: the residue, or for Event Data the number of bytes moved.
    public var length: Int { Int(trb.status & 0xff_ffff) }
    /// ED, bit 2 of a Transfer Event.
    public var isEventData: Bool { trb.control & 1 << 2 != 0 }
    public var slot: Int { Int(trb.control >> 24) }
    /// Endpoint ID of a Transfer Event: the Device Context Index.
    public var endpoint: Int { Int(trb.control >> 16 & 0x1f) }
    /// The port of a Port Status Change Event.
    public var port: Int { Int(trb.parameter >> 24 & 0xff) }

    public var isTransfer: Bool { kind == .transferEvent }
    public var isCommandCompletion: Bool { kind == .commandCompletion }
    public var isPortChange: Bool { kind == .portStatusChange }
}

extension GuestEvent.Code: CustomStringConvertible {
    private static let names: [UInt8: String] = [
        1: "Success", 2: "Data Buffer Error", 3: "Babble Detected", 4: "USB Transaction Error",
        5: "TRB Error", 6: "Stall", 7: "Resource Error", 9: "No Slots Available",
        11: "Slot Not Enabled", 12: "Endpoint Not Enabled", 13: "Short Packet",
        14: "Ring Underrun", 15: "Ring Overrun", 18: "Bandwidth Overrun", 23: "Missed Service",
        31: "Isochronous Buffer Overrun", 10: "Invalid Stream Type", 34: "Invalid Stream ID",
        17: "Parameter Error", 19: "Context State Error",
        21: "Event Ring Full",
        24: "Command Ring Stopped", 25: "Command Aborted", 26: "Stopped",
        27: "Stopped - Length Invalid", 28: "Stopped - Short Packet",
    ]

    public var description: String { Self.names[rawValue] ?? "code \(rawValue)" }
}

extension GuestEvent: CustomStringConvertible {
    public var description: String {
        let hex = String(parameter, radix: 16)
        switch kind {
        case .transferEvent:
            return "transfer(\(code), 0x\(hex), length \(length), slot \(slot), "
                + "endpoint \(endpoint)\(isEventData ? ", event data" : ""))"
        case .commandCompletion: return "command(\(code), 0x\(hex), slot \(slot))"
        case .portStatusChange: return "port(\(port), \(code))"
        default: return "event \(kind.rawValue)(\(code), 0x\(hex))"
        }
    }
}
