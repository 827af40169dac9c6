// SPDX-License-Identifier: Apache-2.0

/// The identification that the logical unit reports in INQUIRY data and the device in its string
/// descriptors.
struct InquiryIdentity: Sendable {
    /// T10 VENDOR IDENTIFICATION, at most 8 printable ASCII characters.
    var vendor = "usbvfiod"
    /// PRODUCT IDENTIFICATION, at most 16 printable ASCII characters.
    var product = "Storage"
    /// PRODUCT REVISION LEVEL, at most 4 printable ASCII characters.
    var revision = "1.0"
    var serialNumber: String
    /// RMB: the medium can be removed.
    var isRemovable = true
}
