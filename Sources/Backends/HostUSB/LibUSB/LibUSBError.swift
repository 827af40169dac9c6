// SPDX-License-Identifier: Apache-2.0

internal import CLibUSB

/// A negative result of a libusb call.
struct LibUSBError: Error, RawRepresentable, Hashable, Sendable {
    let rawValue: CInt

    init(rawValue: CInt) { self.rawValue = rawValue }

    private init(_ error: libusb_error) { rawValue = error.rawValue }

    static let access = LibUSBError(LIBUSB_ERROR_ACCESS)
    static let inputOutput = LibUSBError(LIBUSB_ERROR_IO)
    static let noDevice = LibUSBError(LIBUSB_ERROR_NO_DEVICE)
    static let noMemory = LibUSBError(LIBUSB_ERROR_NO_MEM)
    static let notFound = LibUSBError(LIBUSB_ERROR_NOT_FOUND)
    static let other = LibUSBError(LIBUSB_ERROR_OTHER)
    static let invalidParameter = LibUSBError(LIBUSB_ERROR_INVALID_PARAM)
}

extension LibUSBError: CustomStringConvertible {
    /// libusb's message, such as `Resource busy`.
    var description: String {
        guard let message = unsafe libusb_strerror(rawValue) else { return "error \(rawValue)" }
        return unsafe String(cString: message)
    }
}

/// Makes a libusb call and throws a negative result.
@discardableResult
func libusb(_ call: () -> CInt) throws(LibUSBError) -> CInt {
    let result = call()
    guard result >= 0 else { throw LibUSBError(rawValue: result) }
    return result
}
