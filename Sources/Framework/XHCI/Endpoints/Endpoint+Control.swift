// SPDX-License-Identifier: Apache-2.0

internal import DMA
internal import USB

/// Control requests whose Data Stage comes in pieces (``ControlDataStage``).
///
/// The first piece that fails ends the request, as do Set TR Dequeue Pointer and the next Setup Stage.
/// Stop Endpoint leaves it where it is.
extension Endpoint {
    /// Executes a piece: submits the request to the device, or moves data of the piece.
    mutating func submitPiece(
        _ piece: consuming TransferDescriptor, _ owner: SlotIdentity, _ bus: SystemBus,
        _ sequence: inout UInt64
    ) {
        if piece.stages == .setup {
            request = ControlDataStage(
                SetupPacket(wire: piece.entries[0].trb.parameter), bus.leases.budget)
        }
        guard let request else {
            bus.log("control data: there is no memory for it")
            piece.outcome = .failed(.dataBufferError, transferred: 0)
            appendInFlight(piece, 0)
            return
        }
        guard canReachDevice(owner, bus) else {
            piece.outcome = .failed(.usbTransactionError, transferred: 0)
            appendInFlight(piece, 0)
            return
        }
        let count = min(piece.dataCount, request.remaining)
        let data = request.remainingData.slice(from: 0, count: count)
        piece.direction = request.setup.direction
        piece.buffer = data
        if piece.direction == .out {
            do throws(DMAError) {
                try piece.read(into: data, bus.memory)
            } catch {
                bus.log("control data: \(error)")
                piece.outcome = .failed(.dataBufferError, transferred: 0)
                appendInFlight(piece, 0)
                return
            }
        }
        guard request.involvesDevice(piece.stages) else {
            piece.length = count
            piece.outcome = request.outcome(ofBytes: count)
            appendInFlight(piece, 0)
            return
        }
        let buffer = request.buffer
        piece.length = buffer.count
        submit(piece, 0, .control(request.setup), buffer, owner, &sequence)
    }

    /// Records the device's completion of the request.
    ///
    /// - Returns: the outcome of the piece that submitted it.
    mutating func recordPiece(
        _ outcome: TransferDescriptor.Outcome, _ piece: borrowing TransferDescriptor
    ) -> TransferDescriptor.Outcome {
        guard piece.stages == .setup, let remaining = request?.remaining else { return outcome }
        request?.record(outcome)
        return request?.outcome(ofBytes: min(piece.dataCount, remaining)) ?? outcome
    }

    /// Advances the request past a piece that has completed.
    mutating func finishPiece(_ piece: borrowing TransferDescriptor, _ transferred: Int) {
        switch piece.stages {
        case .setup, .data: request?.advance(transferred)
        case .status: request = nil
        case .all, nil: break
        }
    }
}
