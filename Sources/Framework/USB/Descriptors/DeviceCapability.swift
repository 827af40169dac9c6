// SPDX-License-Identifier: Apache-2.0

/// A device capability descriptor in the binary device object store, BOS (USB 3.2, 9.6.2).
public enum DeviceCapability: Hashable, Sendable {
    /// USB 2.0 Extension: whether the device supports link power management, LPM (USB 3.2,
    /// 9.6.2.1).
    case usb2Extension(linkPowerManagement: Bool)
    /// SuperSpeed USB (USB 3.2, 9.6.2.2): `wSpeedsSupported`, a bit for each speed from low speed
    /// on; `bFunctionalitySupport`, the lowest of them with full function, from 0 for low speed on;
    /// `bU1DevExitLat` and `wU2DevExitLat`, the times in microseconds to leave U1 and U2.
    case superSpeed(
        speeds: UInt16, fullFunctionSpeed: UInt8, u1ExitLatency: UInt8, u2ExitLatency: UInt16)
    /// Any other capability: `bDevCapabilityType` and the bytes that follow it.
    case other(type: UInt8, bytes: [UInt8])

    private var bytes: [UInt8] {
        DescriptorBuilder.bytes(of: .deviceCapability) {
            switch self {
            case .usb2Extension(let linkPowerManagement):
                $0.append(UInt8(2))
                $0.append(UInt32(linkPowerManagement ? 1 << 1 : 0))
            case .superSpeed(let speeds, let fullFunctionSpeed, let u1, let u2):
                $0.append(UInt8(3))
                $0.append(UInt8(0))
                $0.append(speeds)
                $0.append(fullFunctionSpeed)
                $0.append(u1)
                $0.append(u2)
            case .other(let type, let bytes):
                $0.append(type)
                $0.append(contentsOf: bytes)
            }
        }
    }

    /// The BOS descriptor with these capabilities.
    static func objectStore(_ capabilities: [DeviceCapability]) -> [UInt8] {
        let inner = capabilities.flatMap(\.bytes)
        let header = DescriptorBuilder.bytes(of: .binaryObjectStore) {
            $0.append(UInt16(clamping: 5 + inner.count))
            $0.append(UInt8(clamping: capabilities.count))
        }
        return header + inner
    }
}
