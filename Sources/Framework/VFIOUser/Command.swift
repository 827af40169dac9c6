// SPDX-License-Identifier: Apache-2.0

/// The command of a message. A client may send any number.
///
/// Specification: the protocol document's table "Commands".
public struct Command: RawRepresentable, Hashable, Sendable {
    public let rawValue: UInt16

    public init(rawValue: UInt16) { self.rawValue = rawValue }

    public static let version = Command(rawValue: 1)
    public static let dmaMap = Command(rawValue: 2)
    public static let dmaUnmap = Command(rawValue: 3)
    public static let deviceGetInfo = Command(rawValue: 4)
    public static let deviceGetRegionInfo = Command(rawValue: 5)
    public static let deviceGetRegionIOFDs = Command(rawValue: 6)
    public static let deviceGetIRQInfo = Command(rawValue: 7)
    public static let deviceSetIRQs = Command(rawValue: 8)
    public static let regionRead = Command(rawValue: 9)
    public static let regionWrite = Command(rawValue: 10)
    /// From the server to the client.
    public static let dmaRead = Command(rawValue: 11)
    /// From the server to the client.
    public static let dmaWrite = Command(rawValue: 12)
    public static let deviceReset = Command(rawValue: 13)
    /// In old versions of the protocol only.
    public static let dirtyPages = Command(rawValue: 14)
    public static let regionWriteMulti = Command(rawValue: 15)
    public static let deviceFeature = Command(rawValue: 16)
    public static let migrationDataRead = Command(rawValue: 17)
    public static let migrationDataWrite = Command(rawValue: 18)
}

extension Command: CustomStringConvertible {
    /// The name of the command in the protocol document, without its prefix `VFIO_USER_`.
    public var description: String {
        let names = [
            "VERSION", "DMA_MAP", "DMA_UNMAP", "DEVICE_GET_INFO", "DEVICE_GET_REGION_INFO",
            "DEVICE_GET_REGION_IO_FDS", "DEVICE_GET_IRQ_INFO", "DEVICE_SET_IRQS", "REGION_READ",
            "REGION_WRITE", "DMA_READ", "DMA_WRITE", "DEVICE_RESET", "DIRTY_PAGES",
            "REGION_WRITE_MULTI", "DEVICE_FEATURE", "MIG_DATA_READ", "MIG_DATA_WRITE",
        ]
        let index = Int(rawValue) - 1
        return names.indices.contains(index) ? names[index] : "command \(rawValue)"
    }
}
