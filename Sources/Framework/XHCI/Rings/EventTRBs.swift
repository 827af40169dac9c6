// SPDX-License-Identifier: Apache-2.0

/// Event TRBs, which the controller posts to event rings (xHCI 6.4.2). The event ring sets the
/// cycle bit.
extension TRB {
    /// A Transfer Event TRB (xHCI 6.4.2.1).
    ///
    /// - Parameters:
    ///   - pointer: the address of the TRB that caused the event, or the parameter of an Event Data
    ///     TRB.
    ///   - length: the residue in bytes; for an Event Data TRB, the EDTLA: the bytes moved since
    ///     the previous one.
    static func transferEvent(
        _ code: CompletionCode, slot: Int, endpoint: Int, pointer: UInt64, length: Int,
        isEventData: Bool = false
    ) -> TRB {
        var event = TRB(parameter: pointer, status: UInt32(truncatingIfNeeded: length) & 0xff_ffff)
        event.status[bits: 24...31] = UInt32(code.rawValue)
        event.kind = .transferEvent
        event.control[bit: 2] = isEventData
        event.control[bits: 16...20] = UInt32(endpoint)
        event.control[bits: 24...31] = UInt32(slot)
        return event
    }

    /// A Command Completion Event TRB (xHCI 6.4.2.2).
    static func commandCompletion(
        _ code: CompletionCode, pointer: UInt64, slot: Int
    ) -> TRB {
        var event = TRB(parameter: pointer)
        event.status[bits: 24...31] = UInt32(code.rawValue)
        event.kind = .commandCompletion
        event.control[bits: 24...31] = UInt32(slot)
        return event
    }

    /// A Port Status Change Event TRB (xHCI 6.4.2.3).
    ///
    /// - Parameter port: the port number, from 1.
    static func portStatusChange(port: Int) -> TRB {
        var event = TRB(parameter: UInt64(port) << 24)
        event.status[bits: 24...31] = UInt32(CompletionCode.success.rawValue)
        event.kind = .portStatusChange
        return event
    }

    /// A Host Controller Event TRB (xHCI 6.4.2.6).
    static func hostController(_ code: CompletionCode) -> TRB {
        var event = TRB()
        event.status[bits: 24...31] = UInt32(code.rawValue)
        event.kind = .hostController
        return event
    }

    /// An MFINDEX Wrap Event TRB (xHCI 6.4.2.8).
    static var microframeWrap: TRB {
        var event = TRB()
        event.status[bits: 24...31] = UInt32(CompletionCode.success.rawValue)
        event.kind = .microframeWrap
        return event
    }
}
