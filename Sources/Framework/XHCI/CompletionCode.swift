// SPDX-License-Identifier: Apache-2.0

/// How a command or transfer ended (xHCI 6.4.5). Only this controller makes them, so the set is
/// closed.
enum CompletionCode: UInt8 {
    case success = 1
    case dataBufferError = 2
    case babbleDetected = 3
    case usbTransactionError = 4
    case trbError = 5
    case stallError = 6
    case resourceError = 7
    case bandwidthError = 8
    case noSlotsAvailable = 9
    case slotNotEnabled = 11
    case endpointNotEnabled = 12
    case shortPacket = 13
    case parameterError = 17
    case contextStateError = 19
    case eventRingFull = 21
    case commandRingStopped = 24
    case commandAborted = 25
    case stopped = 26
    case stoppedLengthInvalid = 27
    case stoppedShortPacket = 28
}
