// SPDX-License-Identifier: Apache-2.0

internal import USB

/// A transfer descriptor (TD, xHCI 4.11): the TRBs of one transfer, from when they are read until
/// their events are posted.
///
/// On a control endpoint it has the TRBs of all stages. A TD of No Op TRBs and a malformed TD are
/// not submitted and only have events.
struct TransferDescriptor {
    var id = Transfer.ID(rawValue: 0)
    /// The TRBs in order, with those Link TRBs that have IOC set.
    var entries = RingEntries()
    /// The ring position after the last TRB.
    var end: RingPosition
    /// The part of the first TRB that was executed before the endpoint stopped in it.
    var start = PartialTransfer.nothing
    /// `nil` on endpoints that are not control endpoints.
    var stages: ControlStages?
    /// The direction of the data.
    var direction = Direction.out
    /// The bytes that the device may move.
    var length = 0
    /// The interrupters that its events may go to, one bit each.
    var interrupters: UInt16 = 0
    /// `nil` while the device has the transfer.
    var outcome: Outcome?
    /// Isochronous: the microframe in which the TD is due.
    var due: Int64 = 0
    /// Isochronous: the TD has an interrupt.
    var interruptsAtOnce = false
    /// Isochronous: the TRBs have more bytes than Max ESIT Payload.
    var isTruncated = false
    /// The data of all TRBs; of a part of a control request, in the request's staging memory.
    var buffer = TransferBuffer()

    enum Outcome {
        case completed(transferred: Int)
        case cancelled(transferred: Int)
        /// `entry` is the TRB that failed, if it is not the one at `transferred` bytes.
        case failed(CompletionCode, transferred: Int, entry: Int? = nil)
    }

    var isControl: Bool { stages != nil }

    /// Whether the TD is a part of a control request with a split Data Stage
    /// (``ControlDataStage``).
    var isPart: Bool { isControl && stages != .all }

    /// The data bytes of the TRB at an index.
    func length(ofEntry index: Int) -> Int {
        let length = TransferTRB(entries[index].trb).length
        return index == 0 ? max(0, length - start.bytes) : length
    }

    /// Whether the TD has failed. No further TD is submitted until it is retired, except on an
    /// isochronous endpoint.
    var isFailed: Bool {
        if case .failed = outcome { return true }
        return false
    }
}

/// The stages of a control request that a TD has (xHCI 4.11.2.2).
enum ControlStages {
    /// The whole request.
    case all
    /// The Setup Stage and the first TD of a split Data Stage.
    case setup
    /// A further TD of a split Data Stage.
    case data
    /// The Status Stage after a split Data Stage.
    case status
}

/// The part of a TRB that has been executed when an endpoint stops in it.
struct PartialTransfer {
    /// Bytes of the TRB that have moved.
    var bytes: Int
    /// Bytes since the last Event Data TRB (EDTLA).
    var accumulated: Int

    static let nothing = PartialTransfer(bytes: 0, accumulated: 0)
}
