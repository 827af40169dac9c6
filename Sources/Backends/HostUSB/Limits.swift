// SPDX-License-Identifier: Apache-2.0

/// What bounds a passed-through device, beside the host's kernel.
enum HostUSBLimits {
    /// Bytes of one control transfer, which is libusb's own bound. A guest that wants to read more
    /// gets these; what writes more is stalled.
    static let controlBytes = 4096
    /// Different warnings about one device in the log; a guest can cause as many as there are settings
    /// of interfaces.
    static let warningsLogged = 32
}
