// SPDX-License-Identifier: Apache-2.0

/// The backends that a program was built with: a value, made in one line of its `main`.
public struct BackendCatalog {
    /// In the order of the help text.
    public let backends: [any DeviceBackend.Type]

    public init(_ backends: any DeviceBackend.Type...) { self.backends = backends }

    /// The specification that `text` stands for: as written, or for a bare path under
    /// `/dev/bus/usb` that of the host's device behind it.
    public func specification(_ text: String) throws(BackendError) -> DeviceSpecification {
        if let node = Self.hostDevice(text) {
            return try DeviceSpecification(parsing: "host:bus=\(node.bus),address=\(node.address)")
        }
        return try DeviceSpecification(parsing: text)
    }

    /// The backend that `text` names, with its parameters checked by name; nothing is opened.
    public func resolve(
        _ text: String
    ) throws(BackendError) -> (backend: any DeviceBackend.Type, DeviceSpecification) {
        let specification = try specification(text)
        guard let type = backends.first(where: { $0.scheme == specification.scheme }) else {
            let schemes = backends.map { $0.scheme }.joined(separator: ", ")
            throw BackendError("no backend '\(specification.scheme)'; there are: \(schemes)")
        }
        try specification.check(against: type)
        return (type, specification)
    }

    /// Opens the device that `text` specifies.
    public func makeBackend(
        _ text: String, context: BackendContext
    ) throws(BackendError) -> any DeviceBackend {
        let (type, specification) = try resolve(text)
        return try type.init(specification, context: context)
    }

    /// Bus and address of a device node of usbfs.
    private static func hostDevice(_ text: String) -> (bus: UInt8, address: UInt8)? {
        let prefix = "/dev/bus/usb/"
        guard text.hasPrefix(prefix) else { return nil }
        let parts = text.dropFirst(prefix.count).split(
            separator: "/", omittingEmptySubsequences: false)
        guard parts.count == 2, let bus = UInt8(parts[0]), let address = UInt8(parts[1]) else {
            return nil
        }
        return (bus, address)
    }
}
