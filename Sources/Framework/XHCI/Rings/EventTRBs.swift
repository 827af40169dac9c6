// SPDX-License-Identifier: Apache-2.0

/// The events that the controller posts (xHCI 6.4.2).
extension TRB {
    /// A Transfer Event TRB (xHCI 6.4.2.1).
    ///
    /// - Parameters:
    ///   - pointer: the TRB that the event is about, or the data of an Event Data TRB.
    ///   - length: the bytes not moved, or those moved since the last Event Data TRB.
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
