// SPDX-License-Identifier: Apache-2.0

/// A USB transfer between the host and an endpoint of a device.
public struct Transfer {
    /// An identifier that is unique among all transfers of a port.
    public struct ID: Hashable, Sendable {
        /// The identifier as a number.
        public let rawValue: UInt64
        /// Makes an identifier of a number.
        public init(rawValue: UInt64) { self.rawValue = rawValue }
    }

    /// The transfer type (USB 2.0, 5.4), with its parameters.
    public enum Kind {
        /// A whole control transfer. The buffer is the Data Stage: `setup.length` bytes or fewer.
        case control(SetupPacket)
        /// A bulk transfer; the Stream ID is 0 for an endpoint without streams.
        case bulk(stream: UInt16)
        /// An interrupt transfer: an IN transfer stays with the device until it has data.
        case interrupt
        /// The isochronous packets of one service interval: up to burst times multiplier, or none.
        /// See ``USBDevice/keepsIsochronousTime``.
        case isochronous
    }

    /// The result of a transfer.
    public enum Status: Sendable, Equatable {
        /// The transfer completed; fewer bytes than the buffer has are a short packet.
        case completed
        /// The endpoint returned STALL, and is halted until the host clears the halt.
        case stalled
        /// The device sent more bytes than the buffer has (babble).
        case babbled
        /// The bus transaction failed: no handshake, a CRC error, or a timeout.
        case failed
        /// ``USBDevice/cancel(_:)`` or a reset ended the transfer; the bytes moved before count.
        case cancelled
        /// The device is disconnected.
        case disconnected
    }

    /// The completion of a transfer.
    public struct Completion: Sendable {
        /// The transfer.
        public let id: ID
        /// The result.
        public let status: Status
        /// The number of bytes moved, from the beginning of the buffer.
        public let transferred: Int

        /// A completion; see ``Transfer/completion(_:transferred:)``.
        public init(id: ID, status: Status, transferred: Int) {
            self.id = id
            self.status = status
            self.transferred = transferred
        }
    }

    /// The identifier, which the completion repeats.
    public let id: ID
    /// The endpoint; endpoint 0 OUT for control transfers of both directions.
    public let endpoint: EndpointAddress
    /// The transfer type.
    public let kind: Kind
    /// The data: the source of an OUT transfer, the destination of an IN transfer.
    public let buffer: TransferBuffer

    /// A transfer.
    public init(id: ID, endpoint: EndpointAddress, kind: Kind, buffer: TransferBuffer) {
        self.id = id
        self.endpoint = endpoint
        self.kind = kind
        self.buffer = buffer
    }

    /// The direction of the data.
    public var direction: Direction {
        if case .control(let setup) = kind { return setup.direction }
        return endpoint.direction
    }

    /// The Stream ID of a bulk transfer; 0 without streams.
    public var stream: UInt16 {
        if case .bulk(let stream) = kind { return stream }
        return 0
    }

    /// A completion of this transfer.
    public func completion(_ status: Status, transferred: Int = 0) -> Completion {
        Completion(id: id, status: status, transferred: transferred)
    }
}
