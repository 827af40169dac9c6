// SPDX-License-Identifier: Apache-2.0

internal import ArgumentParser
internal import BackendKit
internal import Glibc
internal import HostUSB

/// `usbvfiod devices`: what the host has to give, each with what to write behind `--device`.
struct Devices: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "List the host's USB devices, and how to pass them to a guest.")

    @Flag(help: "As JSON, for management tools.")
    var json = false

    func run() throws {
        do throws(BackendError) {
            let devices = try HostDeviceList.read()
            print(json ? Self.json(devices) : Self.text(devices, isColoured: Self.isTerminal))
        } catch {
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
        let rows = devices.map { device in
            [
                device.specifications.first.map(shellWord) ?? "(not to be passed)",
                "\(device.bus):\(device.address)", "\(device.vendor):\(device.product)",
                device.speed ?? "", device.classes.joined(separator: ", "),
                [device.manufacturerName, device.productName].compactMap(\.self)
                    .joined(separator: " "),
            ]
        }
        let head = ["--device", "bus:address", "ids", "speed", "class", "name"]
        let widths = head.indices.map { column in
            ([head] + rows).map { $0[column].count }.max() ?? 0
        }
        let lines = zip(devices, rows).flatMap { device, row in
            let more = device.specifications.dropFirst().map { "  or \(shellWord($0))" }
            let line = aligned(row, widths)
            return [isColoured && device.isHub ? "\u{1b}[2m\(line)\u{1b}[0m" : line] + more
                + obstacle(of: device, isColoured: isColoured)
        }
        let title = aligned(head, widths)
        return ([isColoured ? "\u{1b}[1m\(title)\u{1b}[0m" : title] + lines)
            .joined(separator: "\n")
    }

    private static func obstacle(of device: HostDeviceEntry, isColoured: Bool) -> [String] {
        let lines = (device.obstacle ?? "").split(separator: "\n").map { "  \($0)" }
        return isColoured ? lines.map { "\u{1b}[33m\($0)\u{1b}[0m" } : lines
    }

    private static func aligned(_ row: [String], _ widths: [Int]) -> String {
        var line = ""
        for (text, width) in zip(row, widths) {
            line += text + String(repeating: " ", count: max(width - text.count, 0) + 2)
        }
        while line.last == " " { line.removeLast() }
        return line
    }

    // MARK: - For programs

    static func json(_ devices: [HostDeviceEntry]) -> String {
        let objects = devices.map { device in
            """
                {
                  "bus": \(device.bus),
                  "address": \(device.address),
                  "vendor": \(quoted(device.vendor)),
                  "product": \(quoted(device.product)),
                  "manufacturerName": \(quoted(device.manufacturerName)),
                  "productName": \(quoted(device.productName)),
                  "serial": \(quoted(device.serial)),
                  "speed": \(quoted(device.speed)),
                  "classes": \(list(device.classes)),
                  "hub": \(device.isHub),
                  "specifications": \(list(device.specifications)),
                  "obstacle": \(quoted(device.obstacle))
                }
            """
        }
        guard !objects.isEmpty else { return "{\n  \"devices\": []\n}" }
        return """
            {
              "devices": [
            \(objects.joined(separator: ",\n"))
              ]
            }
            """
    }

    private static func list(_ texts: [String]) -> String {
        "[" + texts.map { quoted($0) }.joined(separator: ", ") + "]"
    }

    private static func quoted(_ text: String?) -> String {
        text.flatMap { try? usbvfiod.json($0, []) } ?? "null"
    }
}
