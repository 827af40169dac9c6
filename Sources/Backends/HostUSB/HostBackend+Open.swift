// SPDX-License-Identifier: Apache-2.0

public import BackendKit

extension HostBackend {
    /// Opens the node of the device that a rule means, if there is one.
    public static func open(
        _ specification: DeviceSpecification
    ) throws(BackendError) -> OpenedDevice? {
        let rule = try DeviceRule(specification)
        let present = try HostDeviceList.devices()
        let meant = present.filter { rule.means($0) }
        if meant.count > 1 { throw Diagnosis.ambiguous(rule, candidates: meant) }
        guard let name = meant.first else {
            if case .address(let bus, let address) = rule {
                throw Diagnosis.noDevice(bus: bus, address: address, of: present)
            }
            // The server will wait for it, and has to open it itself then.
            return nil
        }
        do throws(LibUSBError) {
            return OpenedDevice(try SystemFiles.openNode(name.node), as: specification)
        } catch {
            throw Diagnosis.cannotOpen(name, error)
        }
    }
}
