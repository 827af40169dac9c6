// SPDX-License-Identifier: Apache-2.0

internal import Platform

/// Sense data (SPC-4, 4.5): the reason for a CHECK CONDITION status.
///
/// Command validation throws it. With Bulk-Only Transport the host fetches it by REQUEST SENSE; UAS
/// sends it with the status.
struct SenseData: Error, Equatable, Sendable {
    enum Key: UInt8, Sendable {
        case noSense = 0x0
        case notReady = 0x2
        case mediumError = 0x3
        case illegalRequest = 0x5
        case unitAttention = 0x6
        case dataProtect = 0x7
        case abortedCommand = 0xb
        case miscompare = 0xe
    }

    /// The field in error: its byte and, if known, its bit.
    struct FieldPointer: Equatable, Sendable {
        /// C/D: the field is in the CDB, otherwise in the parameter list.
        let isInCommand: Bool
        let byte: UInt16
        let bit: UInt8?
    }

    let key: Key
    /// ASC, with ASCQ in the low byte.
    let code: UInt16
    /// INFORMATION: the logical block address at which the error occurred.
    var information: UInt64?
    var fieldPointer: FieldPointer?
    /// The error is a deferred error of a command whose status was sent before (SPC-4, 4.5.7).
    var isDeferred = false

    init(_ key: Key, _ code: UInt16, information: UInt64? = nil) {
        self.key = key
        self.code = code
        self.information = information
    }

    static let none = SenseData(.noSense, 0x0000)
    static let mediumNotPresent = SenseData(.notReady, 0x3a00)
    /// NOT READY TO READY CHANGE, MEDIUM MAY HAVE CHANGED.
    static let mediumMayHaveChanged = SenseData(.unitAttention, 0x2800)
    static let parameterListLengthError = SenseData(.illegalRequest, 0x1a00)
    static let invalidCommand = SenseData(.illegalRequest, 0x2000)
    static let blockOutOfRange = SenseData(.illegalRequest, 0x2100)
    static let logicalUnitNotSupported = SenseData(.illegalRequest, 0x2500)
    static let savingNotSupported = SenseData(.illegalRequest, 0x3900)
    static let removalPrevented = SenseData(.illegalRequest, 0x5302)
    static let writeProtected = SenseData(.dataProtect, 0x2700)
    /// SPACE ALLOCATION FAILED WRITE PROTECT, which hosts report as "no space left on device".
    static let spaceAllocationFailed = SenseData(.dataProtect, 0x2707)
    static let miscompare = SenseData(.miscompare, 0x1d00)
    /// POWER ON, RESET, OR BUS DEVICE RESET OCCURRED.
    static let resetOccurred = SenseData(.unitAttention, 0x2900)
    /// DATA PHASE ERROR: the memory of a transfer is inaccessible, or the data ends too early.
    static let dataPhaseError = SenseData(.abortedCommand, 0x4b00)

    static func unrecoveredReadError(block: UInt64) -> Self {
        SenseData(.mediumError, 0x1100, information: block)
    }

    static func writeError(block: UInt64?) -> Self {
        SenseData(.mediumError, 0x0c00, information: block)
    }

    static func invalidField(inCommand byte: Int, bit: UInt8? = nil) -> Self {
        var sense = SenseData(.illegalRequest, 0x2400)
        sense.fieldPointer = FieldPointer(
            isInCommand: true, byte: UInt16(clamping: byte), bit: bit)
        return sense
    }

    static func invalidField(inParameters byte: Int, bit: UInt8? = nil) -> Self {
        var sense = SenseData(.illegalRequest, 0x2600)
        sense.fieldPointer = FieldPointer(
            isInCommand: false, byte: UInt16(clamping: byte), bit: bit)
        return sense
    }

    /// Fixed format, or descriptor format if the address needs more than 32 bits.
    var shortestFormat: [UInt8] {
        information ?? 0 > UInt64(UInt32.max) ? descriptorFormat : fixedFormat
    }

    /// Fixed format (SPC-4, 4.5.3).
    var fixedFormat: [UInt8] {
        var bytes = [UInt8](repeating: 0, count: 18)
        bytes[0] = isDeferred ? 0x71 : 0x70
        bytes[2] = key.rawValue
        // An address of more than 32 bits fits only in descriptor format.
        if let information, let short = UInt32(exactly: information) {
            bytes[0] |= 0x80
            bytes.store(bigEndian: short, at: 3)
        }
        bytes[7] = 10
        bytes.store(bigEndian: code, at: 12)
        if let fieldPointer {
            bytes.replaceSubrange(15..<18, with: fieldPointer.senseKeySpecific)
        }
        return bytes
    }

    /// Descriptor format (SPC-4, 4.5.2).
    var descriptorFormat: [UInt8] {
        var bytes: [UInt8] = [isDeferred ? 0x73 : 0x72, key.rawValue, 0, 0, 0, 0, 0, 0]
        bytes.store(bigEndian: code, at: 2)
        if let information {
            bytes += [0x00, 0x0a, 0x80, 0x00]
            bytes.append(bigEndian: information)
        }
        if let fieldPointer {
            bytes += [0x02, 0x06, 0x00, 0x00]
            bytes += fieldPointer.senseKeySpecific
            bytes.append(0)
        }
        bytes[7] = UInt8(clamping: bytes.count - 8)
        return bytes
    }
}

extension SenseData.FieldPointer {
    /// SKSV, C/D, BPV and the bit, then the byte (SPC-4, 4.5.2.4.2).
    fileprivate var senseKeySpecific: [UInt8] {
        var flags: UInt8 = 0x80
        if isInCommand { flags |= 0x40 }
        if let bit { flags |= 0x08 | bit & 7 }
        return [flags, UInt8(byte >> 8), UInt8(byte & 0xff)]
    }
}
