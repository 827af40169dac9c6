// SPDX-License-Identifier: Apache-2.0

extension TRB {
    /// A Transfer Event (xHCI 6.4.2.1). `parameter` is the TRB's address or, with `eventData`, the
    /// Event Data TRB's word; `length` is the residue or, with `eventData`, the bytes moved.
    static func transferEvent(
        _ code: CompletionCode, parameter: UInt64, length: Int, eventData: Bool = false, slot: Int,
        endpoint: Int
    ) -> TRB {
        var event = event(.transferEvent, code, parameter: parameter)
        event.status[bits: 0...23] = UInt32(truncatingIfNeeded: length) & 0xff_ffff
        event.control[bit: 2] = eventData
        event.control[bits: 16...20] = UInt32(truncatingIfNeeded: endpoint) & 0x1f
        event.control[bits: 24...31] = UInt32(truncatingIfNeeded: slot) & 0xff
        return event
    }

    /// A Command Completion Event (xHCI 6.4.2.2).
    static func commandCompletion(
        _ code: CompletionCode, command: UInt64, slot: Int, parameter: UInt32 = 0
    ) -> TRB {
        var event = event(.commandCompletionEvent, code, parameter: command)
        event.status[bits: 0...23] = parameter & 0xff_ffff
        event.control[bits: 24...31] = UInt32(truncatingIfNeeded: slot) & 0xff
        return event
    }

    /// A Port Status Change Event (xHCI 6.4.2.3); ports count from 1.
    static func portStatusChange(port: Int) -> TRB {
        event(.portStatusChangeEvent, .success, parameter: UInt64(port & 0xff) << 24)
    }

    /// A Host Controller Event (xHCI 6.4.2.6).
    static func hostController(_ code: CompletionCode) -> TRB {
        event(.hostControllerEvent, code, parameter: 0)
    }

    /// An MFINDEX Wrap Event (xHCI 6.4.2.8).
    static var mfindexWrap: TRB { event(.mfindexWrapEvent, .success, parameter: 0) }

    private static func event(_ kind: Kind, _ code: CompletionCode, parameter: UInt64) -> TRB {
        var event = TRB(parameter: parameter)
        event.status[bits: 24...31] = UInt32(code.rawValue)
        event.kind = kind
        return event
    }
}
