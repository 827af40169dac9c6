// SPDX-License-Identifier: Apache-2.0

public import DMA
internal import Platform
public import USB

/// A TRB (xHCI 6.4) as a driver writes it, defined apart from the controller's own type so that the
/// two check each other.
public struct GuestTRB: BitwiseCopyable, Hashable, Sendable {
    public var parameter: UInt64
    public var status: UInt32
    public var control: UInt32

    public init(parameter: UInt64, status: UInt32, control: UInt32) {
        self.parameter = parameter
        self.status = status
        self.control = control
    }

    /// A TRB of any type, valid or not.
    public init(
        _ kind: Kind, parameter: UInt64 = 0, status: UInt32 = 0, flags: Flags = [],
        control: UInt32 = 0
    ) {
        self.init(
            parameter: parameter, status: status,
            control: control | flags.rawValue | UInt32(kind.rawValue) << 10)
    }

    /// TRB Type (xHCI table 6-91).
    public struct Kind: RawRepresentable, Hashable, Sendable {
        public let rawValue: UInt8
        public init(rawValue: UInt8) { self.rawValue = rawValue & 0x3f }
        public static let normal = Kind(rawValue: 1)
        public static let setupStage = Kind(rawValue: 2)
        public static let dataStage = Kind(rawValue: 3)
        public static let statusStage = Kind(rawValue: 4)
        public static let isochronous = Kind(rawValue: 5)
        public static let link = Kind(rawValue: 6)
        public static let eventData = Kind(rawValue: 7)
        public static let noOp = Kind(rawValue: 8)
        public static let enableSlot = Kind(rawValue: 9)
        public static let disableSlot = Kind(rawValue: 10)
        public static let addressDevice = Kind(rawValue: 11)
        public static let configureEndpoint = Kind(rawValue: 12)
        public static let evaluateContext = Kind(rawValue: 13)
        public static let resetEndpoint = Kind(rawValue: 14)
        public static let stopEndpoint = Kind(rawValue: 15)
        public static let setDequeuePointer = Kind(rawValue: 16)
        public static let resetDevice = Kind(rawValue: 17)
        public static let forceEvent = Kind(rawValue: 18)
        public static let negotiateBandwidth = Kind(rawValue: 19)
        public static let setLatencyTolerance = Kind(rawValue: 20)
        public static let getPortBandwidth = Kind(rawValue: 21)
        public static let forceHeader = Kind(rawValue: 22)
        public static let noOpCommand = Kind(rawValue: 23)
        public static let transferEvent = Kind(rawValue: 32)
        public static let commandCompletion = Kind(rawValue: 33)
        public static let portStatusChange = Kind(rawValue: 34)
        public static let hostController = Kind(rawValue: 37)
        public static let microframeWrap = Kind(rawValue: 39)
    }

    /// The flags of the control word; some bits mean different things in different TRBs.
    public struct Flags: OptionSet, Sendable, Hashable {
        public let rawValue: UInt32
        public init(rawValue: UInt32) { self.rawValue = rawValue }
        /// C, bit 0; the ring sets it.
        public static let cycle = Flags(rawValue: 1 << 0)
        /// TC, bit 1 of a Link TRB.
        public static let toggleCycle = Flags(rawValue: 1 << 1)
        /// ENT, bit 1.
        public static let evaluateNext = Flags(rawValue: 1 << 1)
        /// ISP, bit 2.
        public static let interruptOnShortPacket = Flags(rawValue: 1 << 2)
        /// CH, bit 4.
        public static let chain = Flags(rawValue: 1 << 4)
        /// IOC, bit 5.
        public static let interruptOnCompletion = Flags(rawValue: 1 << 5)
        /// IDT, bit 6.
        public static let immediateData = Flags(rawValue: 1 << 6)
        /// BEI, bit 9.
        public static let blockEventInterrupt = Flags(rawValue: 1 << 9)
        /// BSR, bit 9 of Address Device.
        public static let blockSetAddress = Flags(rawValue: 1 << 9)
        /// DC, bit 9 of Configure Endpoint.
        public static let deconfigure = Flags(rawValue: 1 << 9)
        /// TSP, bit 9 of Reset Endpoint.
        public static let preserveTransferState = Flags(rawValue: 1 << 9)
        /// DIR, bit 16 of Data and Status Stage TRBs.
        public static let directionIn = Flags(rawValue: 1 << 16)
        /// SP, bit 23 of Stop Endpoint.
        public static let suspend = Flags(rawValue: 1 << 23)
    }

    public var kind: Kind { Kind(rawValue: UInt8(truncatingIfNeeded: control >> 10) & 0x3f) }
    public var flags: Flags { Flags(rawValue: control) }
    public var isChained: Bool { flags.contains(.chain) }

    /// The transfer length of a TRB that moves data.
    public var length: Int { Int(status & 0x1ffff) }

    /// This TRB with more flags.
    public func adding(_ more: Flags) -> GuestTRB {
        GuestTRB(parameter: parameter, status: status, control: control | more.rawValue)
    }

    /// This TRB with another Interrupter Target.
    public func interrupter(_ number: Int) -> GuestTRB {
        GuestTRB(
            parameter: parameter, status: status & 0x3f_ffff | UInt32(number) << 22,
            control: control)
    }
}

// MARK: - Transfer TRBs (xHCI 6.4.1)

extension GuestTRB {
    public static func normal(
        _ buffer: GuestAddress, _ length: Int, _ flags: Flags = [], tdSize: Int = 0
    ) -> GuestTRB {
        GuestTRB(
            .normal, parameter: buffer.rawValue,
            status: UInt32(length & 0x1ffff) | UInt32(tdSize & 0x1f) << 17, flags: flags)
    }

    /// An Isoch TRB with a Frame ID, or with SIA if `frame` is `nil`.
    public static func isochronous(
        _ buffer: GuestAddress, _ length: Int, _ flags: Flags = [], frame: Int? = nil
    ) -> GuestTRB {
        GuestTRB(
            .isochronous, parameter: buffer.rawValue, status: UInt32(length & 0x1ffff),
            flags: flags, control: frame.map { UInt32($0 & 0x7ff) << 20 } ?? 1 << 31)
    }

    /// A Normal TRB with immediate data (IDT) of up to eight bytes.
    public static func immediate(_ bytes: [UInt8], _ flags: Flags = []) -> GuestTRB {
        let padded = bytes + [UInt8](repeating: 0, count: 8 - bytes.count)
        return GuestTRB(
            .normal, parameter: padded.littleEndian(at: 0), status: UInt32(bytes.count),
            flags: flags.union(.immediateData))
    }

    /// A Setup Stage TRB; without `transferType`, TRT follows from the packet.
    public static func setup(
        _ packet: SetupPacket, _ flags: Flags = [], transferType: UInt32? = nil
    ) -> GuestTRB {
        let type = transferType ?? (packet.length == 0 ? 0 : packet.direction == .in ? 3 : 2)
        return GuestTRB(
            .setupStage, parameter: packet.wire, status: 8,
            flags: flags.union(.immediateData), control: type << 16)
    }

    public static func data(
        _ buffer: GuestAddress, _ length: Int, _ direction: Direction, _ flags: Flags = []
    ) -> GuestTRB {
        GuestTRB(
            .dataStage, parameter: buffer.rawValue, status: UInt32(length & 0x1ffff),
            flags: direction == .in ? flags.union(.directionIn) : flags)
    }

    public static func status(_ direction: Direction, _ flags: Flags = []) -> GuestTRB {
        GuestTRB(.statusStage, flags: direction == .in ? flags.union(.directionIn) : flags)
    }

    public static func eventData(_ value: UInt64, _ flags: Flags = []) -> GuestTRB {
        GuestTRB(.eventData, parameter: value, flags: flags)
    }

    public static func noOp(_ flags: Flags = []) -> GuestTRB { GuestTRB(.noOp, flags: flags) }

    public static func link(to segment: GuestAddress, _ flags: Flags = []) -> GuestTRB {
        GuestTRB(.link, parameter: segment.rawValue, flags: flags)
    }
}

// MARK: - Command TRBs (xHCI 6.4.3)

extension GuestTRB {
    /// A command TRB with the fields that most commands share.
    public static func command(
        _ kind: Kind, slot: Int = 0, endpoint: Int = 0, parameter: UInt64 = 0,
        _ flags: Flags = [], status: UInt32 = 0
    ) -> GuestTRB {
        GuestTRB(
            kind, parameter: parameter, status: status, flags: flags,
            control: UInt32(slot & 0xff) << 24 | UInt32(endpoint & 0x1f) << 16)
    }

    /// - Parameters:
    ///   - stream: Stream ID; 0 where the endpoint has no streams.
    ///   - streamType: SCT.
    public static func setDequeuePointer(
        slot: Int, endpoint: Int, _ pointer: GuestAddress, cycle: Bool, stream: Int = 0,
        streamType: UInt64 = 0
    ) -> GuestTRB {
        .command(
            .setDequeuePointer, slot: slot, endpoint: endpoint,
            parameter: pointer.rawValue | streamType << 1 | (cycle ? 1 : 0),
            status: UInt32(stream) << 16)
    }
}
