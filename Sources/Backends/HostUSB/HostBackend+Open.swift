// SPDX-License-Identifier: Apache-2.0

public import BackendKit

extension HostBackend {
    /// Opens the node of the device that a rule matches.
    ///
    /// - Returns: `nil` if no device matches and the rule waits for one; the server then opens that
    ///   one.
    public static func open(
        _ specification: DeviceSpecification
    ) throws(BackendError) -> OpenedDevice? {
        let rule = try DeviceRule(specification)
        let present = try HostDeviceList.devices()
        let matching = present.filter { rule.matches($0) }
        if matching.count > 1 { throw Diagnosis.ambiguous(rule, candidates: matching) }
        guard let name = matching.first else {
            if case .address(let bus, let address) = rule {
                throw Diagnosis.noDevice(bus: bus, address: address, of: present)
            }
            return nil
        }
        do throws(LibUSBError) {
            return OpenedDevice(try SystemFiles.openNode(name.node), as: specification)
        } catch {
            throw Diagnosis.cannotOpen(name, error)
        }
    }
}
