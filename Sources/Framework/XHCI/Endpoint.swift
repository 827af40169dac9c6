// SPDX-License-Identifier: Apache-2.0

internal import DMA
internal import DequeModule
internal import USB

/// An endpoint of a device slot: its state (xHCI 4.8.3), its ring and the transfers on their way.
final class Endpoint {
    let slot: Int
    /// Device Context Index: twice the number, plus one for IN and for the control endpoint.
    let dci: Int
    let kind: EndpointKind
    /// Where the output Endpoint Context is.
    let contextAddress: GuestAddress
    var context: EndpointContext

    /// The next TRB to be looked at.
    var position: RingPosition
    /// Given to the device, or waiting to be told to the guest, in ring order.
    var inFlight: Deque<TransferInFlight> = []
    /// Bytes of `inFlight`.
    var bytesInFlight = 0
    /// Transfers that were given up and which the device has still to give back.
    var abandoned: [Transfer.ID] = []
    /// What a stop left half done, for going on where it stopped.
    var leftover: Leftover?
    /// An invalid TRB was met: nothing behind it is looked at until the guest hears of it.
    var isBlocked = false
    /// Whether it is in the controller's list of endpoints to look at.
    var isQueued = false

    struct Leftover {
        /// The TRB in which the stop fell.
        let address: UInt64
        /// Bytes of that TRB that were moved.
        let bytes: Int
        /// EDTLA so far (xHCI 4.11.5.2).
        let accumulated: Int
    }

    init(slot: Int, dci: Int, context: EndpointContext, contextAddress: GuestAddress) {
        self.slot = slot
        self.dci = dci
        self.context = context
        self.contextAddress = contextAddress
        kind = context.kind
        position = RingPosition(pointer: context.dequeue)
    }

    var address: EndpointAddress {
        dci == 1 ? .control : EndpointAddress(UInt8(dci / 2), dci % 2 == 1 ? .in : .out)
    }

    var state: EndpointState { context.state }

    /// Whether the device owes nothing.
    var isQuiet: Bool { abandoned.isEmpty && inFlight.allSatisfy { $0.outcome != nil } }

    /// Whether another transfer may be given to the device.
    var hasRoom: Bool {
        !isBlocked && inFlight.count < Limits.transfersInFlight
            && (inFlight.isEmpty || bytesInFlight < Limits.bytesInFlight)
    }
}

/// A transfer between its ring and the guest's being told.
struct TransferInFlight {
    /// How it ended.
    enum Outcome {
        /// The device, or this controller for TDs that move nothing, has finished with it.
        case ended(Transfer.Status, transferred: Int)
        /// It could not be begun: the code and the entry that is to blame.
        case refused(CompletionCode, entry: Int)
    }

    let id: Transfer.ID
    var descriptor: TransferDescriptor
    let direction: Direction
    var bounces: [BounceBuffer]
    /// Bytes of the first data TRB that an earlier part of the transfer moved.
    let skipped: Int
    /// EDTLA that the earlier part left.
    let accumulated: Int
    var outcome: Outcome?
}

/// Memory of ours that stands in for guest memory which cannot be reached in place.
@safe
final class BounceBuffer {
    let bytes: UnsafeMutableRawBufferPointer
    /// Where the bytes belong in guest memory; `nil` for immediate data.
    let address: GuestAddress?
    /// Where the bytes are in their transfer.
    let offset: Int

    init(count: Int, address: GuestAddress?, offset: Int) {
        unsafe bytes = .allocate(byteCount: count, alignment: 16)
        unsafe bytes.initializeMemory(as: UInt8.self, repeating: 0)
        self.address = address
        self.offset = offset
    }

    deinit { unsafe bytes.deallocate() }
}
