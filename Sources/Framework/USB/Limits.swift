// SPDX-License-Identifier: Apache-2.0

/// Bounds of the descriptor parser.
///
/// They are the Linux kernel's own (`drivers/usb/core/config.c`).
public enum USBLimits {
    /// Configurations of one device that are parsed (`USB_MAXCONFIG`).
    public static let configurations = 8
    /// Interface numbers in one configuration that are parsed (`USB_MAXINTERFACES`).
    public static let interfaces = 32
}
