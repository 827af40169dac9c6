// SPDX-License-Identifier: Apache-2.0

internal import ArgumentParser
internal import BackendKit
internal import Glibc
internal import HostUSB

/// `usbvfiod devices`: prints the host's USB devices with the values of `--device` for each.
struct DevicesCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "devices",
        abstract: "List the host's USB devices, and how to pass them to a guest.")

    @Flag(help: "As JSON, for management tools.")
    var json = false

    func run() throws {
        do {
            let devices = try HostDeviceList.read()
            print(json ? try Self.json(devices) : Self.text(devices, isColoured: Self.isTerminal))
        } catch let error as BackendError {
            throw Failure(description: error.reason)
        }
    }

    private static var isTerminal: Bool {
        let isUnwanted = unsafe getenv("NO_COLOR") != nil
        return isatty(STDOUT_FILENO) == 1 && !isUnwanted
    }

    // MARK: - For people

    static func text(_ devices: [HostDeviceEntry], isColoured: Bool) -> String {
        if devices.isEmpty { return "this host has no USB devices" }
        let head = ["--device", "bus:address", "ids", "speed", "class", "name"]
        var lines = TextTable([head] + devices.map { row(of: $0) }).lines[...]
        var text = [coloured(lines.removeFirst(), isColoured ? .bold : nil)]
        for (device, line) in zip(devices, lines) {
            text.append(coloured(line, isColoured && device.isHub ? .dim : nil))
            text += device.specifications.dropFirst().map { "  or \(shellWord($0))" }
            text += (device.obstacle ?? "").split(separator: "\n").map {
                coloured("  \($0)", isColoured ? .yellow : nil)
            }
        }
        return text.joined(separator: "\n")
    }

    private static func row(of device: HostDeviceEntry) -> [String] {
        [
            device.specifications.first.map(shellWord) ?? "(cannot be passed)",
            "\(device.bus):\(device.address)", "\(device.vendor):\(device.product)",
            device.speed ?? "", device.classes.joined(separator: ", "),
            [device.manufacturerName, device.productName].compactMap(\.self)
                .joined(separator: " "),
        ]
    }

    /// Parameters of the terminal's SGR sequence.
    private enum Colour: Int {
        case bold = 1
        case dim = 2
        case yellow = 33
    }

    private static func coloured(_ text: String, _ colour: Colour?) -> String {
        guard let colour else { return text }
        return "\u{1b}[\(colour.rawValue)m\(text)\u{1b}[0m"
    }

    // MARK: - For programs

    static func json(_ devices: [HostDeviceEntry]) throws -> String {
        try usbvfiod.json(["devices": devices.map { DeviceDescription(device: $0) }])
    }
}

/// A device in the JSON of `usbvfiod devices --json`.
private struct DeviceDescription: Encodable {
    let device: HostDeviceEntry

    private enum CodingKeys: String, CodingKey {
        case bus, address, vendor, product, manufacturerName, productName, serial, speed, classes
        case hub, specifications, obstacle
    }

    /// Encodes absent values as `null`, so that every device has the same keys.
    func encode(to encoder: any Encoder) throws {
        var container = encoder.container(keyedBy: CodingKeys.self)
        try container.encode(device.bus, forKey: .bus)
        try container.encode(device.address, forKey: .address)
        try container.encode(device.vendor, forKey: .vendor)
        try container.encode(device.product, forKey: .product)
        try container.encode(device.manufacturerName, forKey: .manufacturerName)
        try container.encode(device.productName, forKey: .productName)
        try container.encode(device.serial, forKey: .serial)
        try container.encode(device.speed, forKey: .speed)
        try container.encode(device.classes, forKey: .classes)
        try container.encode(device.isHub, forKey: .hub)
        try container.encode(device.specifications, forKey: .specifications)
        try container.encode(device.obstacle, forKey: .obstacle)
    }
}
