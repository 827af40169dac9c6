// SPDX-License-Identifier: Apache-2.0

internal import CLibUSB

/// What libusb answers when a call fails.
struct LibUSBError: Error, RawRepresentable, Hashable, Sendable {
    let rawValue: CInt

    init(rawValue: CInt) { self.rawValue = rawValue }

    private init(_ error: libusb_error) { rawValue = error.rawValue }

    static let access = LibUSBError(LIBUSB_ERROR_ACCESS)
    static let inputOutput = LibUSBError(LIBUSB_ERROR_IO)
    static let busy = LibUSBError(LIBUSB_ERROR_BUSY)
    static let noDevice = LibUSBError(LIBUSB_ERROR_NO_DEVICE)
    static let noMemory = LibUSBError(LIBUSB_ERROR_NO_MEM)
    static let notFound = LibUSBError(LIBUSB_ERROR_NOT_FOUND)
    static let other = LibUSBError(LIBUSB_ERROR_OTHER)
    static let invalidParameter = LibUSBError(LIBUSB_ERROR_INVALID_PARAM)
}

extension LibUSBError: CustomStringConvertible {
    /// libusb's own words for it.
    var description: String {
        guard let words = unsafe libusb_strerror(rawValue) else { return "error \(rawValue)" }
        return unsafe String(cString: words)
    }
}

/// Makes a call of libusb and throws what it answers if that is an error.
@discardableResult
func libusb(_ call: () -> CInt) throws(LibUSBError) -> CInt {
    let result = call()
    guard result >= 0 else { throw LibUSBError(rawValue: result) }
    return result
}
