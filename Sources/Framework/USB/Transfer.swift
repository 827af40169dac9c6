// SPDX-License-Identifier: Apache-2.0

/// A request of the host to an endpoint of a device: all TRBs of one transfer descriptor.
public struct Transfer {
    /// Tells the transfers of one port apart; never used twice.
    public struct ID: Hashable, Sendable {
        /// A running number.
        public let rawValue: UInt64
        public init(rawValue: UInt64) { self.rawValue = rawValue }
    }

    /// The four transfer types of USB, with what each needs beside data.
    public enum Kind {
        /// One whole control transfer. The buffer is the data stage, `setup.length` bytes or fewer.
        case control(SetupPacket)
        /// Stream 0 is an endpoint without streams.
        case bulk(stream: UInt16)
        /// Waits on the device's side until there is something to say.
        case interrupt
        /// What an isochronous endpoint moves in one service interval: up to burst times multiplier
        /// packets, which may be none. See ``USBDevice/keepsIsochronousTime``.
        case isochronous
    }

    /// How a transfer ended.
    public enum Status: Sendable, Equatable {
        /// The device took or gave what it wanted; fewer bytes than asked is a short packet.
        case completed
        /// The endpoint answered STALL and is halted until it is cleared.
        case stalled
        /// The device sent more than was asked for.
        case babbled
        /// The bus transaction failed: no handshake, bad CRC, or the host's stack gave up.
        case failed
        /// ``USBDevice/cancel(_:)`` ended it; the bytes moved until then count.
        case cancelled
        /// The device is gone.
        case disconnected
    }

    /// The one answer to a transfer.
    public struct Completion: Sendable {
        public let id: ID
        public let status: Status
        /// Bytes of the buffer that were moved, from its beginning.
        public let transferred: Int

        public init(id: ID, status: Status, transferred: Int) {
            self.id = id
            self.status = status
            self.transferred = transferred
        }
    }

    public let id: ID
    /// For a control transfer endpoint 0, whatever the direction of its data stage.
    public let endpoint: EndpointAddress
    public let kind: Kind
    /// The data: read from it when the transfer goes OUT, write to it when it goes IN.
    public let buffer: TransferBuffer

    public init(id: ID, endpoint: EndpointAddress, kind: Kind, buffer: TransferBuffer) {
        self.id = id
        self.endpoint = endpoint
        self.kind = kind
        self.buffer = buffer
    }

    /// The direction in which data moves.
    public var direction: Direction {
        if case .control(let setup) = kind { return setup.direction }
        return endpoint.direction
    }

    /// The stream of a bulk transfer; 0 without streams.
    public var stream: UInt16 {
        if case .bulk(let stream) = kind { return stream }
        return 0
    }

    /// An answer to this transfer.
    public func completion(_ status: Status, transferred: Int = 0) -> Completion {
        Completion(id: id, status: status, transferred: transferred)
    }
}
