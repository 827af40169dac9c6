// SPDX-License-Identifier: Apache-2.0

public import Foundation

/// The images, servers and guests of one test, and a folder for their files.
///
/// Servers and guests are killed with the lab, which a test suite keeps in a property. If USBVFIOD_KEEP is set, the
/// folder with all logs is kept and its path is printed.
public final class Lab {
    private let bed: Bed
    private let folder: URL
    private var servers: [Server] = []
    private var guests: [Guest] = []

    /// An empty lab; throws if the bed is not ready.
    public init() throws {
        bed = try Bed.current.get()
        // The path is short, because that of a socket has at most 107 bytes.
        folder = URL(filePath: "/tmp/usbvfiod-\(UInt32.random(in: 0 ... .max))")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    }

    deinit {
        guests.forEach { $0.kill() }
        servers.forEach { $0.kill() }
        if ProcessInfo.processInfo.environment["USBVFIOD_KEEP"] != nil {
            print("kept \(folder.path)")
        } else {
            try? FileManager.default.removeItem(at: folder)
        }
    }

    /// A new image with random contents, so that no two blocks are equal.
    public func image(mebibytes: Int) throws -> DiskImage {
        let path = folder.appending(path: "image-\(UInt32.random(in: 0 ... .max))").path
        try CompletedProgram.firstLine(
            of: "sh", "-c", "head -c \(mebibytes)M /dev/urandom >'\(path)'")
        return DiskImage(path: path)
    }

    /// Starts usbvfiod with some devices and waits until it listens.
    public func serve(_ devices: String...) throws -> Server { try serve(devices) }

    /// Starts usbvfiod with a list of devices and waits until it listens.
    public func serve(_ devices: [String]) throws -> Server {
        let server = try Server(
            devices: devices, folder: makeFolder("server-\(servers.count + 1)"))
        servers.append(server)
        return server
    }

    /// Boots a guest and waits until it accepts commands.
    public func boot(_ machine: Machine) throws -> Guest {
        let guest = try Guest(machine, bed: bed, folder: makeFolder("guest-\(guests.count + 1)"))
        guests.append(guest)
        return guest
    }

    /// Boots a guest with the USB controller of a server.
    public func boot(_ kernel: Kernel, with server: Server) throws -> Guest {
        try boot(Machine(kernel, devices: [.usbvfiod(server.socket)]))
    }

    /// Boots a guest that is a host itself, with USB devices.
    public func bootHost(_ kernel: Kernel, devices: [Machine.Device]) throws -> GuestHost {
        try GuestHost(self, kernel, devices: devices)
    }

    /// Creates a folder that a guest can mount as /mnt/NAME.
    public func makeFolder(_ name: String) throws -> String {
        let url = folder.appending(path: name)
        try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true)
        return url.path
    }
}

/// A disk image on this host.
public struct DiskImage: Sendable {
    /// The path of the file.
    public let path: String

    /// The SHA-256 of the image, or of its first `mebibytes`.
    public func checksum(mebibytes: Int? = nil) throws -> String {
        let source = mebibytes.map { "head -c \($0)M '\(path)'" } ?? "cat '\(path)'"
        return try CompletedProgram.firstLine(
            of: "sh", "-c", "\(source) | sha256sum | cut -d' ' -f1")
    }

    /// The first `count` bytes.
    public func prefix(_ count: Int) throws -> Data {
        let file = try FileHandle(forReadingFrom: URL(filePath: path))
        return try file.read(upToCount: count) ?? Data()
    }
}
