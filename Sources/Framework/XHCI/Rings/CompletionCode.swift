// SPDX-License-Identifier: Apache-2.0

/// A Completion Code (xHCI 6.4.5), the result that an event reports.
///
/// The controller alone produces these values, so the list is closed. It has only the codes that
/// this controller reports.
enum CompletionCode: UInt8 {
    case success = 1
    case dataBufferError = 2
    case babbleDetectedError = 3
    case usbTransactionError = 4
    case trbError = 5
    case stallError = 6
    case noSlotsAvailableError = 9
    case invalidStreamTypeError = 10
    case slotNotEnabledError = 11
    case endpointNotEnabledError = 12
    case shortPacket = 13
    case ringUnderrun = 14
    case ringOverrun = 15
    case parameterError = 17
    case bandwidthOverrunError = 18
    case contextStateError = 19
    case eventRingFullError = 21
    case missedServiceError = 23
    case commandRingStopped = 24
    case commandAborted = 25
    case stopped = 26
    case isochronousBufferOverrun = 31
    case invalidStreamIDError = 34

    /// The name in xHCI table 6-90, for log lines.
    var displayName: String {
        switch self {
        case .success: "Success"
        case .dataBufferError: "Data Buffer Error"
        case .babbleDetectedError: "Babble Detected Error"
        case .usbTransactionError: "USB Transaction Error"
        case .trbError: "TRB Error"
        case .stallError: "Stall Error"
        case .noSlotsAvailableError: "No Slots Available Error"
        case .invalidStreamTypeError: "Invalid Stream Type Error"
        case .slotNotEnabledError: "Slot Not Enabled Error"
        case .endpointNotEnabledError: "Endpoint Not Enabled Error"
        case .shortPacket: "Short Packet"
        case .ringUnderrun: "Ring Underrun"
        case .ringOverrun: "Ring Overrun"
        case .parameterError: "Parameter Error"
        case .bandwidthOverrunError: "Bandwidth Overrun Error"
        case .contextStateError: "Context State Error"
        case .eventRingFullError: "Event Ring Full Error"
        case .missedServiceError: "Missed Service Error"
        case .commandRingStopped: "Command Ring Stopped"
        case .commandAborted: "Command Aborted"
        case .stopped: "Stopped"
        case .isochronousBufferOverrun: "Isoch Buffer Overrun"
        case .invalidStreamIDError: "Invalid Stream ID Error"
        }
    }
}
