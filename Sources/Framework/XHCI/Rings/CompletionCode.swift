// SPDX-License-Identifier: Apache-2.0

/// How a command or a transfer ended (xHCI 6.4.5). Only the controller makes these, so the list is
/// closed; codes that this controller never produces are left out.
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
}
